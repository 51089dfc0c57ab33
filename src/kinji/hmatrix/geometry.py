"""Point sets of the test problems, in one scale, and the checks every point set must pass.

Each point of a surface owns the area of a disc of radius 2 and each point of a volume that of a ball of radius 2,
whatever the shape and the number of points: kernels, length scales and natural diagonals mean the same everywhere.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

OWNED_RADIUS = 2.0
CELL_AREA = math.pi * OWNED_RADIUS**2
CELL_VOLUME = 4.0 / 3.0 * math.pi * OWNED_RADIUS**3
NEIGHBOURS = 16
"""Neighbours of a point that say how densely the points around it lie."""
ATOM_CANDIDATES = 64
"""Centres in a cube of edge 2, of which `molecule` keeps those in the unit ball; their spacing is 1/2."""
ATOM_RADIUS = 0.3
ATOM_GAP = 1.0 / 3.0
"""Least distance of a point of `molecule` from other atoms, in the spacing of points: an edge cuts cells in two."""
WIDEST_GAP = ATOM_RADIUS / 6.0
"""The same in units of the radius: however few the points, there must be a place for each."""


class PointSet(NamedTuple):
    """Points, what each of them owns, and of what.

    Attributes
    ----------
    points : Tensor
        Coordinates, shape ``(N, 3)``, float64.
    cell_measure : float
        Area or volume that one point owns, in squared or cubed units of the coordinates.
    dimension : int
        2 for a surface, 3 for a volume.
    """

    points: Tensor
    cell_measure: float
    dimension: int


class Geometry(NamedTuple):
    """A way to place N points, and the dimension of what they cover: 2 for a surface, 3 for a volume."""

    place: Callable[..., Tensor]
    dimension: int


def place_points(name: str, n: int, *, device: str = "cpu") -> PointSet:
    """Place ``n`` points on a geometry by its name in `GEOMETRIES`.

    Parameters
    ----------
    name : str
        A key of `GEOMETRIES`.
    n : int
        Number of points, at least 1.
    device : str
        Torch device of the points.

    Returns
    -------
    PointSet
        The same points in every call.

    Raises
    ------
    ValueError
        If the name is unknown or ``n`` is below 1.
    """
    if name not in GEOMETRIES:
        raise ValueError(f"unknown geometry {name!r}: choose one of {', '.join(GEOMETRIES)}")
    place, dimension = GEOMETRIES[name]
    return PointSet(place(n, device=device), CELL_AREA if dimension == 2 else CELL_VOLUME, dimension)


def fibonacci_sphere(n: int, *, device: str = "cpu") -> Tensor:
    """Spread ``n`` points evenly over a sphere of radius ``sqrt(n)``.

    Parameters
    ----------
    n : int
        Number of points, at least 1.
    device : str
        Torch device of the result.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64. Each owns an area of 4 pi, whatever ``n``.

    Raises
    ------
    ValueError
        If ``n`` is below 1.

    References
    ----------
    Gonzalez, "Measurement of areas on a sphere using Fibonacci and latitude-longitude lattices",
    Mathematical Geosciences 42 (2010).
    """
    _check_count(n)
    index = torch.arange(n, dtype=torch.float64, device=device)
    height = 1.0 - (2.0 * index + 1.0) / n
    longitude = index * (math.pi * (3.0 - math.sqrt(5.0)))
    ring = torch.sqrt(1.0 - height.square())
    unit = torch.stack([ring * torch.cos(longitude), ring * torch.sin(longitude), height], dim=1)
    return math.sqrt(n) * unit


def cube_surface(n: int, *, device: str = "cpu") -> Tensor:
    """Spread ``n`` points evenly over the surface of a cube of edge ``sqrt(4 pi n / 6)`` around the origin.

    Each face is cut into rows, and each row into cells of one area with a point in the middle.

    Parameters
    ----------
    n, device
        As in `fibonacci_sphere`.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64. Each owns an area of 4 pi; faces differ by one point where 6 does not
        divide ``n``.

    Raises
    ------
    ValueError
        If ``n`` is below 1.
    """
    _check_count(n)
    faces = []
    for face in range(6):
        unit = np.insert(_square_grid((n + 5 - face) // 6), face // 2, face % 2, axis=1)
        faces.append(unit - 0.5)
    return torch.from_numpy(math.sqrt(CELL_AREA * n / 6) * np.concatenate(faces)).to(device)


def _square_grid(count: int) -> NDArray[np.float64]:
    """Middles of ``count`` cells of equal area that fill the unit square row by row."""
    rows = max(1, round(math.sqrt(count)))
    perR = np.full(rows, count // rows)
    perR[: count % rows] += 1
    startR = np.cumsum(perR) - perR
    row = np.repeat(np.arange(rows), perR)
    along = (np.arange(count) - startR[row] + 0.5) / perR[row]
    across = (startR[row] + 0.5 * perR[row]) / max(1, count)
    return np.stack([along, across], axis=1)


def uniform_cube(n: int, *, device: str = "cpu") -> Tensor:
    """Spread ``n`` points evenly through a cube of volume ``32 pi n / 3`` around the origin.

    They are the first points of a Kronecker sequence. Independent random points would come so close to each other
    that the kernel matrix of ``1/r`` with its natural diagonal is indefinite.

    Parameters
    ----------
    n, device
        As in `fibonacci_sphere`.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64. Each owns a volume of 32 pi / 3.

    Raises
    ------
    ValueError
        If ``n`` is below 1.
    """
    _check_count(n)
    return torch.from_numpy((CELL_VOLUME * n) ** (1.0 / 3.0) * (_kronecker_sequence(n) - 0.5)).to(device)


def _kronecker_sequence(count: int) -> NDArray[np.float64]:
    """Points ``i (1/g, 1/g^2, 1/g^3) mod 1`` with the root g of ``g^4 = g + 1``: none comes near an earlier one."""
    root = np.roots([1.0, 0.0, 0.0, -1.0, -1.0]).real.max()
    return (0.5 + np.arange(1, count + 1)[:, None] * root ** -np.arange(1.0, 4.0)) % 1.0


def molecule(n: int, *, device: str = "cpu") -> Tensor:
    """Spread ``n`` points evenly over the van der Waals surface of a globule of overlapping atoms.

    The surface has cavities and narrow clefts: points near to each other in space may be far apart along it. Points
    keep a distance from the edges where atoms meet; the others stand closer, by 8 % in area at ``n = 16384``.

    Parameters
    ----------
    n, device
        As in `fibonacci_sphere`. Below 30 points an atom, or 1000 in all, the shape is hardly resolved.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64, atom by atom. Each owns an area of 4 pi, on average.

    Raises
    ------
    ValueError
        If ``n`` is below 1.
    """
    _check_count(n)
    centres, area = _atoms()
    spacing = math.sqrt(area / n)
    gap = min(ATOM_GAP * spacing, WIDEST_GAP)
    per_atom = 1 + n // len(centres)
    while len(found := _exposed_points(centres, per_atom, gap)) < n:
        per_atom = max(per_atom + 1, per_atom * n // max(1, len(found)))
    chosen = (2 * np.arange(n) + 1) * len(found) // (2 * n)
    return torch.from_numpy(math.sqrt(CELL_AREA) / spacing * found[chosen]).to(device)


@cache
def _atoms() -> tuple[NDArray[np.float64], float]:
    """Centres of the atoms in the unit ball, and the exposed area of their union (1e-3 relative)."""
    candidates = 2.0 * _kronecker_sequence(ATOM_CANDIDATES) - 1.0
    centres = candidates[np.square(candidates).sum(axis=1) < 1.0]
    per_atom = 1 << 14
    exposed = len(_exposed_points(centres, per_atom, 0.0))
    return centres, 4.0 * math.pi * ATOM_RADIUS**2 * exposed / per_atom


def _exposed_points(centres: NDArray[np.float64], per_atom: int, gap: float) -> NDArray[np.float64]:
    """Points of Fibonacci spheres around the centres that are ``gap`` or more outside every other atom."""
    sphere = ATOM_RADIUS / math.sqrt(per_atom) * fibonacci_sphere(per_atom).numpy()
    exposed = []
    for centre in centres:
        points, distance = centre + sphere, np.linalg.norm(centres - centre, axis=1)
        for other in centres[(distance > 0.0) & (distance < 2.0 * ATOM_RADIUS + gap)]:
            points = points[np.square(points - other).sum(axis=1) >= (ATOM_RADIUS + gap) ** 2]
        exposed.append(points)
    return np.concatenate(exposed)


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"n = {n}: a geometry needs at least one point")


GEOMETRIES: dict[str, Geometry] = {
    "sphere": Geometry(fibonacci_sphere, 2),
    "cube_surface": Geometry(cube_surface, 2),
    "molecule": Geometry(molecule, 2),
    "uniform_cube": Geometry(uniform_cube, 3),
}


def points_from_file(path: str | Path, *, device: str = "cpu") -> Tensor:
    """Read points in the units of the file; `measure_cells` says what each of them owns.

    Parameters
    ----------
    path : str or Path
        An ``.npy`` array of shape ``(n, 3)`` or wider, or text with ``x y z`` at the start of each line. Further
        columns, empty lines and whatever follows a ``#`` are skipped.
    device : str
        Torch device of the result.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If a row is no point, or there is none; the message names the file, the line and what is wrong.
    """
    path = Path(path)
    points = _read_array(path) if path.suffix == ".npy" else _read_text(path)
    if len(points) == 0:
        raise ValueError(f"{path}: no points in it")
    return torch.from_numpy(points).to(device)


def _read_text(path: Path) -> NDArray[np.float64]:
    rows = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.partition("#")[0].split()
            if fields:
                rows.append(_coordinates(fields, f"{path}, line {number}"))
    return np.array(rows, dtype=np.float64)


def _coordinates(fields: list[str], where: str) -> tuple[float, ...]:
    if len(fields) < 3:
        raise ValueError(f"{where}: {len(fields)} of the 3 coordinates x y z")
    try:
        point = float(fields[0]), float(fields[1]), float(fields[2])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not all(map(math.isfinite, point)):
        raise ValueError(f"{where}: coordinates {' '.join(fields[:3])} are not all finite")
    return point


def _read_array(path: Path) -> NDArray[np.float64]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a complete .npy array of numbers: {error}") from error
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] < 3:
        raise ValueError(f"{path}: {array.dtype} of shape {array.shape} where rows of 3 real coordinates are expected")
    points = np.ascontiguousarray(array[:, :3], dtype=np.float64)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise ValueError(f"{path}, row {bad.argmax()}: a coordinate is not finite")
    return points


def measure_cells(points: Tensor, *, dimension: int) -> float:
    """Estimate the area or volume that a point owns where only the points are known, such as from a file.

    A disc or ball up to neighbour j holds about j + 1/2 cells: the mean over 16 neighbours, the median over all points.
    With 16384 points it is within 7 % on each of `GEOMETRIES`; with 1500, 24 % low on the molecule.

    Parameters
    ----------
    points : Tensor
        At least two points that cover a surface or volume evenly, shape ``(n, 3)``.
    dimension : int
        2 for a surface, 3 for a volume.

    Returns
    -------
    float
        Area or volume in squared or cubed units of the coordinates.

    Raises
    ------
    ValueError
        If the dimension is neither or there are fewer than two points.
    """
    if dimension not in (2, 3):
        raise ValueError(f"dimension = {dimension}: 2 for a surface, 3 for a volume")
    if len(points) < 2:
        raise ValueError(f"{len(points)} point: one point alone does not show what it owns")
    neighbours = min(NEIGHBOURS, len(points) - 1)
    host = points.cpu().numpy()
    radiusNJ = cKDTree(host).query(host, k=np.arange(2, neighbours + 2))[0]  # the first neighbour is the point itself
    cellsJ = 1.5 + np.arange(neighbours)
    unit = math.pi if dimension == 2 else 4.0 / 3.0 * math.pi
    return unit * float(np.median(np.mean(radiusNJ**dimension, axis=1))) / float(cellsJ.mean())


def self_term(area_per_point: float) -> float:
    """Average of ``1/r`` over the disc that one surface point owns: the natural diagonal of the kernel.

    A disc of radius ``p`` has the integral ``2 pi p`` and the area ``pi p^2``, so the average is ``2 / p``.

    Parameters
    ----------
    area_per_point : float
        Surface area divided by the number of points, in squared units of length.

    Returns
    -------
    float
        Diagonal entry in inverse units of length; 1 for `fibonacci_sphere`.
    """
    return 2.0 / math.sqrt(area_per_point / math.pi)


def check_points(points: Tensor) -> None:
    """Refuse point sets on which a kernel matrix is undefined or singular.

    Parameters
    ----------
    points : Tensor
        Candidate point set, shape ``(n, 3)``, float64.

    Raises
    ------
    TypeError
        If the points are not float64.
    ValueError
        If the shape is wrong, a coordinate is not finite, or two points coincide.
    """
    if points.dtype != torch.float64:
        raise TypeError(f"points are {points.dtype}: convert them to torch.float64")
    if points.ndim != 2 or points.shape[1] != 3 or points.shape[0] == 0:
        raise ValueError(f"points have shape {tuple(points.shape)}: pass one row of 3 coordinates per point")
    bad = ~torch.isfinite(points).all(dim=1)
    if bad.any():
        raise ValueError(f"point {int(bad.nonzero()[0])} has a coordinate that is not finite: remove or mend it")
    order = _lexicographic_order(points + 0.0)  # a sort of bits, as on a GPU, tells -0.0 from 0.0
    twins = (points[order[1:]] == points[order[:-1]]).all(dim=1).nonzero().flatten()
    if twins.numel():
        at = twins[order[twins].argmin()]
        raise ValueError(
            f"points {int(order[at])} and {int(order[at + 1])} coincide: merge duplicates, their rows are equal"
        )


def _lexicographic_order(points: Tensor) -> Tensor:
    order = torch.arange(len(points), device=points.device)
    for axis in (2, 1, 0):
        order = order[points[order, axis].argsort(stable=True)]
    return order
