"""Operands made to fool: fixed counts, the published automatic rule, and products to a given accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import ADVERSARIAL
from kinji.experiments.int8_dgemm.sides import NARROW, SAMPLES, Observation, moduli_side, native_sides, slices_side
from kinji.gemm import AccuracyError, matmul, published_slice_count, sample_reference, truncation_bound

MEAN_LOST_BITS = (0.0, 1.0, 1.5)  # thresholds of the published rule: its default, and the example of its manual


def try_adversarial(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield, for each input, the relative error of every way to choose, or that it refused."""
    for name, make in context.progress.track(ADVERSARIAL.items(), "adversarial operands"):
        a, b = make(min(case.n, NARROW), case.n, case.seed, device)
        reference = sample_reference(a.numpy(force=True), b.numpy(force=True), samples=SAMPLES, seed=case.seed)
        for about, product in _ways(a, b):
            observed: Observation = {"quantity": "adversarial", "input": name, **about, "refused": product is None}
            if product is not None:
                values = product.numpy(force=True)
                observed["relative_error"] = reference.relative_error(values)
                observed["error_roundoffs"] = reference.error_in_roundoffs(values)
            if about["method"] == "scheme_one":
                bound = truncation_bound(a, b, slices=int(about["count"]))[reference.rows_P, reference.columns_P]
                observed["bound_relative"] = float(np.min(bound / np.abs(reference.head_P)))
            yield observed


def _ways(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[Observation, torch.Tensor | None]]:
    for side in (*native_sides(a.device), slices_side(9), moduli_side(15), moduli_side(20)):
        yield {"chosen_by": "hand", "method": side.method, "count": side.count}, side.multiply(a, b)
    for allowed in MEAN_LOST_BITS:
        slices = published_slice_count(a, b, mean_lost_bits=allowed)
        about: Observation = {"chosen_by": "published rule", "mean_lost_bits": allowed}
        side = slices_side(slices) if slices else native_sides(a.device)[0]
        yield {**about, "method": side.method, "count": side.count}, side.multiply(a, b)
    try:
        product = matmul(a, b)
        yield {"chosen_by": "bound", "method": product.scheme, "count": product.count}, product.value
    except AccuracyError:
        yield {"chosen_by": "bound", "method": "matmul", "count": 0}, None
