"""Points from a file."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
