"""Side by side: seconds of one training step of SGD, of K-FAC here, and of peers' K-FAC where they are installed.

``python benchmarks/kfac.py [--json FILE] [--network resnet50] [--pixels 64] [--batch 32] [--threads 2]``
``python benchmarks/kfac.py --device cuda --pixels 224 --precision fp32|tf32|bf16``

A K-FAC step is timed in three kinds: "P" reuses statistics and inverses and only preconditions, "F" forms statistics
too, "FI" inverts as well. "1/1" is FI in every step; "10/100" forms statistics in every tenth and inverts in every
hundredth step, its mean made of the three kinds; "adaptive" is the mean of steps on a new random batch each, after
those in which memory for the last two statistics is taken.
Sides take turns, and the minimum of the repetitions counts. Peers run with their own defaults, but the inverse in place
of the eigenvalue form, and the empirical Fisher. Peak memory is that of a process for each side alone.

Floors are operations over the rate of a square single-precision product measured in the same run: one triangle of each
factor product, n^3 / 3 of each factorization, 2 i o (i + o) of each preconditioning; for "adaptive" of what its steps
refreshed. Parts that several layers at a time are formed in count by their share of the threads.

On a CUDA device times are those between events, networks are channels-last, and "one stream" forms the statistics
within the backward pass instead of beside it. TF32 holds for the network and the factor products alone; with BF16 the
network runs under autocast, and factor products take operands of that type.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from kfac_sides import AdaptiveSide, OurSide, Step, Task, our_step, peers, set_up, sgd

ADAPTIVE_START = 3
"""Steps until an adaptive optimizer holds the average and the last two of each statistic."""


def measure(task: Task, steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each side, interleaved, after one step of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-1, repetitions):
        for name, step in steps.items():
            elapsed = task.seconds(step)
            if repetition >= 0:
                seconds[name].append(elapsed)
    return seconds


def peak(options: argparse.Namespace, name: str) -> int:
    """Return the peak memory of some steps of one side, in a process of its own."""
    task = set_up(options)
    step = ({"SGD": sgd, "kinji, FI": our_step("FI")} | peers())[name](task)
    for _ in range(3):
        step()
    return task.peak_bytes()


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Return the peak memory of each side."""
    sides = ("SGD", "kinji, FI", *peers())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(sides, pool.map(partial(peak, options), sides), strict=True))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--network", default="resnet50", choices=("resnet18", "resnet50"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--adaptive-steps", type=int, default=24, help="steps in which intervals may grow")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    if options.device == "cpu" and options.precision == "tf32":
        parser.error("--precision tf32: a CPU has none")
    return options


def main() -> None:
    """Print tables for people; write a list of measurements for machines."""
    options = arguments()
    memory = peaks(options)
    task = set_up(options)
    ours = OurSide(task)
    ours.watch()
    steps = {"SGD": sgd(task)} | {f"kinji, {kind}": lambda kind=kind: ours.step(kind) for kind in ("FI", "P", "F")}
    if task.cuda:
        one_stream = OurSide(task, overlap=False)
        steps["kinji, F, one stream"] = lambda: one_stream.step("F")
    steps |= {name: make(task) for name, make in peers().items()}
    seconds = measure(task, steps, options.repetitions)
    adaptive = AdaptiveSide(task)
    for _ in range(ADAPTIVE_START):
        adaptive.next_step()
    adaptive.operations = 0
    seconds["kinji, adaptive"] = [adaptive.next_step() for _ in range(options.adaptive_steps)]
    report(task, seconds, ours, adaptive)
    print("peak memory, MB: " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in memory.items()))
    if options.json:
        timed = seconds | ours.parts.seconds
        rows = [
            {"name": name, "value": min(values), "unit": "s", "repetitions": values} for name, values in timed.items()
        ]
        rows += [
            {"name": f"peak, {name}", "value": size, "unit": "B", "repetitions": [size]}
            for name, size in memory.items()
        ]
        options.json.write_text(
            json.dumps([row | {"name": f"{options.network}: {row['name']}"} for row in rows]) + "\n"
        )


def report(task: Task, seconds: dict[str, list[float]], ours: OurSide, adaptive: AdaptiveSide) -> None:
    """Print each kind of step over SGD's, then each part over its floor."""
    rate, options = task.product_rate(), task.options
    best = {name: min(values) for name, values in seconds.items()}
    floors = ours.floors(rate)
    p, f, fi = (best[f"kinji, {kind}"] for kind in ("P", "F", "FI"))
    best["kinji, 10/100"] = (90 * p + 9 * f + fi) / 100
    best["kinji, adaptive"] = statistics.mean(seconds["kinji, adaptive"])
    only_p, with_f = floors["preconditioning"], floors["preconditioning"] + floors["factor products"]
    least = {"kinji, P": only_p, "kinji, F": with_f, "kinji, FI": with_f + floors["inverses"]}
    least["kinji, 10/100"] = only_p + floors["factor products"] / 10 + floors["inverses"] / 100
    least["kinji, adaptive"] = adaptive.operations / rate / options.adaptive_steps
    where = torch.cuda.get_device_name() if task.cuda else f"{options.threads} threads"
    print(f"\n{options.network}, {options.pixels} px, batch {options.batch}, {options.precision}, {where}")
    print(f"product: {rate / 1e9:.0f} GFLOP/s\n{'':<24}{'seconds':>10}{'over SGD':>10}{'extra over floor':>18}")
    for name, value in best.items():
        over = f"{(value - best['SGD']) / least[name]:>18.2f}" if name in least else ""
        print(f"{name:<24}{value:>10.4f}{value / best['SGD']:>10.2f}{over}")
    print(f"\n{'part of FI':<24}{'seconds':>10}{'floor':>10}{'over floor':>12}")
    for part, values in ours.parts.seconds.items():
        floor = floors.get(part)
        over = "" if floor is None else f"{floor:>10.4f}{min(values) / floor:>12.2f}"
        print(f"{part:<24}{min(values):>10.4f}{over}")
    intervals = [clock.interval for clock in adaptive.kfac.clocks.values()]
    spread = f"{min(intervals)} to {max(intervals)}, median {statistics.median(intervals)}"
    print(f"adaptive intervals after {options.adaptive_steps} steps: {spread}")


if __name__ == "__main__":
    main()
