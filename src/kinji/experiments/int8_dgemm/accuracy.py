"""Errors of each way to multiply on operands of given spread, and whether an accuracy asked for is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import exponential
from kinji.experiments.int8_dgemm.sides import (
    NARROW,
    SAMPLES,
    Observation,
    Side,
    blas_kernel,
    digest,
    moduli_side,
    native_sides,
    slices_side,
)
from kinji.gemm import AccuracyError, Reference, matmul, sample_reference, truncation_bound
from kinji.gemm.reference import UNIT_ROUNDOFF

UNGROUPED_SLICES = 9
ACCURATE_MODULI = 15
TIGHT_ERROR = 2.0


def compare_accuracy(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield the error of every side for each phi, and of products to a given accuracy."""
    for phi in context.progress.track(case.phi, "accuracy"):
        a, b = exponential(min(case.n, NARROW), case.n, phi, case.seed, device)
        reference = sample_reference(a.numpy(force=True), b.numpy(force=True), samples=SAMPLES, seed=case.seed)
        for side in _sides(case, device):
            about: Observation = {"phi": phi, "method": side.method, "count": side.count}
            yield {"quantity": "accuracy", **about, **side_accuracy(side, a, b, reference)}
        for error in ("dgemm", TIGHT_ERROR):
            yield {"quantity": "guarantee", "phi": phi, **guaranteed_accuracy(a, b, error, reference)}


def _sides(case: Int8DgemmCase, device: torch.device) -> list[Side]:
    schemes = [*map(slices_side, case.slices), *map(moduli_side, case.moduli)]
    variants = [slices_side(UNGROUPED_SLICES, grouped=False), moduli_side(ACCURATE_MODULI, accurate=True)]
    return [*native_sides(device), *schemes, *variants]


def side_accuracy(side: Side, a: torch.Tensor, b: torch.Tensor, reference: Reference) -> Observation:
    """Return the error of one side, its rigorous bound (native DGEMM's is K), and the digest of its product."""
    product = side.multiply(a, b)
    error = reference.error_in_roundoffs(product.numpy(force=True))
    observed: Observation = {"error_roundoffs": error, "digest": digest(product)}
    if side.count == 0:
        return {**observed, "bound_roundoffs": a.shape[1], "blas_kernel": blas_kernel(side.method, a.device)}
    if side.method == "scheme_two_accurate":
        return observed
    one = side.method.startswith("scheme_one")
    left_out_MN = truncation_bound(a, b, slices=side.count) if one else truncation_bound(a, b, moduli=side.count)
    left_out_P = left_out_MN[reference.rows_P, reference.columns_P] / reference.magnitude_P
    rounding = side.count - 1 if one else 1
    return {**observed, "bound_roundoffs": float(np.max(left_out_P)) / UNIT_ROUNDOFF + rounding}


def guaranteed_accuracy(a: torch.Tensor, b: torch.Tensor, error: float | str, reference: Reference) -> Observation:
    """Return what `matmul` makes of an accuracy asked for: its choice, its bound and the error, or that it refused."""
    asked: Observation = {"asked": str(error), "asked_roundoffs": a.shape[1] if error == "dgemm" else float(error)}
    try:
        product = matmul(a, b, error=error)  # type: ignore[arg-type]
    except AccuracyError:
        return {**asked, "method": "matmul", "refused": True}
    return {
        **asked,
        "refused": False,
        "method": product.scheme,
        "count": product.count,
        "bound_roundoffs": product.bound,
        "error_roundoffs": reference.error_in_roundoffs(product.value.numpy(force=True)),
    }
