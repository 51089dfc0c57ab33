"""Side by side: the tile low-rank Cholesky (LORAPO) and hmat-oss, with the DGEMM rate of the same run; one thread.

``python benchmarks/lorapo.py [--json FILE] [--sizes 2048 4096] [--tiles 256 512 1024] [--repetitions 3]``

The kernel is 1/r on a sphere with its natural diagonal, 1. All sides run interleaved. With several tile sizes, the
best for each N, by compression, factorization and one solution together, is named last: this tunes the baseline.
`rate` is the share of DGEMM's rate by textbook counts of what is executed; `SVD` is the largest ratio of a tile's
rank to that of its singular value decomposition, over some tiles. hmat-oss is skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemm import restart_with_fastest_openblas
from hmat_oss import Peer, build

from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.kernels import Kernel, true_product
from kinji.hmatrix.tile_compression import LowRankTile
from kinji.hmatrix.tile_substitution import solve_tiles

GEMM_SIZE = 1024
MANY_SIDES = 256
TILES_COMPARED = 12
STAGES = ("compress", "factorize", "solve")
Seconds = dict[tuple[str, str], list[float]]


def main() -> None:
    """Time the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--openblas-as-it-is", action="store_true", help="do not look for OpenBLAS's fastest kernel")
    options = parser.parse_args()
    if not options.openblas_as_it_is:
        restart_with_fastest_openblas()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # for the peer
    with tempfile.TemporaryDirectory() as folder, limited_to(1):
        peer = build(Path(folder))
        print(f"hmat-oss: {peer if isinstance(peer, str) else f'runs on {peer.blas}'}")
        rows = [row for n in options.sizes for row in measure(n, options, peer)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(n: int, options: argparse.Namespace, peer: Peer | str) -> list[dict[str, Any]]:
    """Print and return what one N takes with each tile size, and the peer beside it."""
    points = fibonacci_sphere(n)
    x = torch.randn(n, MANY_SIDES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = true_product(Kernel(diagonal=1.0), points, x)
    seconds: Seconds = {}
    runs = {}
    peers = []
    for repetition in range(-1, options.repetitions):
        for tile in options.tiles:
            taken, runs[tile] = run_tiles(points, b, tile, options.tolerance)
            for stage, value in taken.items() if repetition >= 0 else ():
                seconds.setdefault((f"tile {tile}", stage), []).append(value)
        if isinstance(peer, Peer) and repetition >= 0:
            peers.append(peer.measure(n, options.tolerance))
    for stage in STAGES if peers else ():
        seconds["hmat-oss", stage] = [taken[stage] for taken in peers]
    return report(n, options.tolerance, points, x, b, seconds, runs, peers)


def run_tiles(
    points: torch.Tensor, b: torch.Tensor, tile: int, tolerance: float
) -> tuple[dict[str, float], BlockLowRankMatrix]:
    """Return the seconds of DGEMM and of each stage, and the factor."""
    a = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE))
    taken = {"DGEMM": timed(lambda: a @ a)[0]}
    taken["compress"], tiles = timed(
        lambda: compress_tiles(Kernel(diagonal=1.0), points, tile_size=tile, tolerance=tolerance, max_rank=tile)
    )
    tiles.flops.total = 0.0
    taken["factorize"], _ = timed(lambda: factorize_tiles(tiles))
    taken["solve"], _ = timed(lambda: solve_tiles(tiles, b[:, :1]))
    taken["solve many"], _ = timed(lambda: solve_tiles(tiles, b))
    taken["DGEMM"] = min(taken["DGEMM"], timed(lambda: a @ a)[0])
    return taken, tiles


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds and the result of ``work``."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def report(
    n: int,
    tolerance: float,
    points: torch.Tensor,
    x: torch.Tensor,
    b: torch.Tensor,
    seconds: Seconds,
    runs: dict[int, BlockLowRankMatrix],
    peers: list[dict[str, float]],
) -> list[dict[str, Any]]:
    """Print a table for people; return what machines want."""
    rows = [measurement(f"{side}, N = {n}, {stage}", "s", taken) for (side, stage), taken in seconds.items()]
    median = {key: statistics.median(taken) for key, taken in seconds.items()}
    heads = ("compress", "factorize", "solve", "rate", "256 sides", "error", "mean", "max", "SVD", "MB")
    print(f"\nN = {n}\n{'':<12}" + "".join(f"{head:>10}" for head in heads))
    for tile, matrix in runs.items():
        side = f"tile {tile}"
        unit = [gemm / (2.0 * GEMM_SIZE**3) for gemm in seconds[side, "DGEMM"]]
        rate, many = (
            [work * one / taken for one, taken in zip(unit, seconds[side, stage], strict=True)]
            for stage, work in (("factorize", matrix.flops.total), ("solve many", solve_flops(matrix, MANY_SIDES)))
        )
        error = float((solve_tiles(matrix, b) - x).norm() / x.norm())
        ranks = matrix.ranks or [0]
        svd = largest_rank_ratio(points, tile, tolerance)
        print(
            f"{side:<12}"
            + "".join(f"{median[side, stage]:>10.4f}" for stage in STAGES)
            + f"{statistics.median(rate):>10.0%}{statistics.median(many):>10.0%}{error:>10.1e}"
            + f"{sum(ranks) / len(ranks):>10.1f}{max(ranks):>10}{svd:>10.2f}{1e-6 * matrix.nbytes:>10.0f}"
        )
        rows += [
            measurement(f"{side}, N = {n}, factorize, share of DGEMM's rate", "1", rate),
            measurement(f"{side}, N = {n}, {MANY_SIDES} sides, share of DGEMM's rate", "1", many),
            measurement(f"{side}, N = {n}, factorize, operations", "1", [matrix.flops.total]),
            measurement(f"{side}, N = {n}, error", "1", [error]),
            measurement(f"{side}, N = {n}, mean rank", "1", [sum(ranks) / len(ranks)]),
            measurement(f"{side}, N = {n}, rank over the SVD's, largest", "1", [svd]),
        ]
    if peers:
        times = "".join(f"{median['hmat-oss', stage]:>10.4f}" for stage in STAGES)
        blank = f"{'':>10}"
        size = f"{1e-6 * peers[0]['bytes']:>10.0f}"
        print(f"{'hmat-oss':<12}{times}{blank * 2}{peers[0]['error']:>10.1e}{blank * 3}{size}")
        rows.append(measurement(f"hmat-oss, N = {n}, error", "1", [peers[0]["error"]]))
    total = {tile: sum(median[f"tile {tile}", stage] for stage in STAGES) for tile in runs}
    best = min(total, key=lambda tile: total[tile])
    print(f"best tile for N = {n}: {best}, {total[best]:.3f} s in all")
    rows.append(measurement(f"N = {n}, best tile", "points", [best]))
    return rows


def solve_flops(matrix: BlockLowRankMatrix, sides: int) -> float:
    """Return the textbook count of both substitutions."""
    entries = sum(
        tile.left.numel() + tile.right.numel() if isinstance(tile, LowRankTile) else tile.numel() / 2
        for tile in matrix.tiles.values()
    )
    return 4.0 * entries * sides


def largest_rank_ratio(points: torch.Tensor, tile: int, tolerance: float) -> float:
    """Compare the ranks of compressed tiles with those of the singular value decomposition."""
    matrix = compress_tiles(Kernel(diagonal=1.0), points, tile_size=tile, tolerance=tolerance, max_rank=tile)
    places = [place for place, kept in matrix.tiles.items() if isinstance(kept, LowRankTile)]
    ratio = 0.0
    for i, j in places[:: max(1, len(places) // TILES_COMPARED)]:
        rows, columns = (matrix.tree.points[matrix.tree.members[k]] for k in (i, j))
        values = torch.linalg.svdvals(Kernel(diagonal=1.0)(rows, columns))
        wanted = int((values > tolerance * values[0]).sum())
        kept = matrix.tiles[i, j]
        assert isinstance(kept, LowRankTile)
        ratio = max(ratio, kept.left.shape[1] / wanted)
    return ratio


def measurement(name: str, unit: str, repetitions: list[float]) -> dict[str, Any]:
    """Return one result for machines."""
    return {"name": name, "value": statistics.median(repetitions), "unit": unit, "repetitions": repetitions}


if __name__ == "__main__":
    main()
