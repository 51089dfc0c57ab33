"""The ranks of a case: processes that let the optimizers take turns, and what they observe."""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.profiler import ProfilerActivity, profile, record_function

from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.ranks import gather
from kinji.experiments.step_breakdown.prediction import collectives_case
from kinji.experiments.step_breakdown.stopwatch import Stopwatch, clock_of
from kinji.experiments.step_breakdown.structure import rank_count_difference, structure_rows
from kinji.experiments.step_breakdown.trials import KFACTrial, Row, SGDTrial, Trial


def run_ranks(case: StepBreakdownCase, context: Context) -> Iterator[Row]:
    """Yield what each rank of a case observed: those that torchrun or srun started, or else are started here."""
    if context.communicator is not None:
        _choose_precision(case.precision)
        for of_rank in gather(context.communicator, {"rows": _rows(case, context)}):
            yield from of_rank["rows"]
        return
    with tempfile.TemporaryDirectory() as folder:
        seen = (context.device, context.threads, context.progress)  # what can be sent to another process
        multiprocessing.spawn(_rank, (case, seen, folder), nprocs=case.ranks)
        for rank in range(case.ranks):
            yield from json.loads((Path(folder) / f"{rank}.json").read_text())


def observe(case: StepBreakdownCase, context: Context) -> Iterator[Row]:
    """Let the optimizers take turns, then state what does not depend on the clock, then what predictions need."""
    watch = Stopwatch(clock_of(context.device))
    trials = _trials(case, watch, context.device, product(case.fishers, case.batch_norms))
    yield from _rounds(trials, case.repetitions, context, (True, False))
    yield from (row for trial in trials for row in trial.traffic())
    yield _memory(context.device)
    yield {"quantity": "equality", "relative_difference": rank_count_difference(context.device)}
    if distributed.get_rank() == 0:
        yield from structure_rows(trials[0].model)
    if case.trace:
        _trace(trials, case.trace)
    del trials
    if case.predicted:
        yield from _calibrate(case, watch, context)


def _trials(
    case: StepBreakdownCase, watch: Stopwatch, device: str, variants: Iterable[tuple[str, str]], *, alone: bool = False
) -> list[Trial]:
    """Return SGD, and K-FAC in each of its variants."""
    return [
        SGDTrial(case, watch, device, alone=alone),
        *(KFACTrial(case, watch, device, fisher, batch_norm, alone=alone) for fisher, batch_norm in variants),
    ]


def _calibrate(case: StepBreakdownCase, watch: Stopwatch, context: Context) -> Iterator[Row]:
    """Measure what the predictions are made from, then the networks to predict that have not been measured yet.

    Ranks that train alone do so at the same time: the machine is as busy as with ranks that share.
    """
    runs = {"alone": case, "collectives": collectives_case(case)}
    runs |= {network: replace(case, network=network) for network in case.predicted if network != case.network}
    for name, run in runs.items():
        variants = [(case.fishers[0], case.batch_norms[0])]
        trials = _trials(run, watch, context.device, variants, alone=name == "alone")
        for row in _rounds(trials, case.repetitions, context, (True,)):
            yield row | {"quantity": f"calibration {row['quantity']}", "run": name}
        del trials


def _rounds(trials: Sequence[Trial], repetitions: int, context: Context, modes: Sequence[bool]) -> Iterator[Row]:
    """Let trials take turns, with stages timed or not; a first round of the first mode is warm-up."""
    rounds: Iterable[int] = range(repetitions + 1)
    if distributed.get_rank() == 0:
        rounds = context.progress.track(rounds, f"rounds of SGD and K-FAC, {trials[0].case.network}")
    for repetition in rounds:
        taken = modes if repetition > 0 else modes[:1]
        rows = [row for timed in taken for trial in trials for row in trial.observe(timed)]
        if repetition > 0:
            yield from (row | {"repetition": repetition - 1} for row in rows)


def _rank(rank: int, case: StepBreakdownCase, seen: tuple[str, int, Progress], folder: str) -> None:
    context = Context(*seen)
    torch.set_num_threads(max(1, context.threads // case.ranks))
    device = torch.device(context.device, rank) if context.device == "cuda" else None
    if device:
        torch.cuda.set_device(device)
    _choose_precision(case.precision)
    backend, store = "nccl" if device else "gloo", f"file://{folder}/store"
    distributed.init_process_group(backend, init_method=store, rank=rank, world_size=case.ranks, device_id=device)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(_rows(case, context)))
    distributed.destroy_process_group()


def _rows(case: StepBreakdownCase, context: Context) -> list[Row]:
    return [row | {"rank": distributed.get_rank()} for row in observe(case, context)]


def _choose_precision(precision: str) -> None:
    """Let CUDA's products and convolutions round their operands, or not (torch's own choice differs between them)."""
    torch.backends.cudnn.benchmark = True
    chosen = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = chosen
    torch.backends.cudnn.conv.fp32_precision = chosen  # type: ignore[attr-defined]


def _memory(device: str) -> Row:
    row: Row = {"quantity": "memory", "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return row | ({"peak_device_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})


def _trace(trials: Sequence[Trial], file: str) -> None:
    """Let the first rank write a trace of one whole step of each trial, for chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        for trial in trials:
            with record_function(" ".join(str(name) for name in trial.names().values())):
                trial.step()
    if distributed.get_rank() == 0:
        profiler.export_chrome_trace(file)
