"""Point sets of the test problems, in one scale.

Each point of a surface owns the area of a disc of radius 2 and each point of a volume that of a ball of radius 2,
whatever the shape and the number of points: kernels, length scales and natural diagonals mean the same everywhere.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OWNED_RADIUS = 2.0
CELL_AREA = math.pi * OWNED_RADIUS**2
CELL_VOLUME = 4.0 / 3.0 * math.pi * OWNED_RADIUS**3
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
