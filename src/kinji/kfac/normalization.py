"""Blocks of batch and layer normalizations: one small matrix for each scale and shift, one for all, or numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from kinji.kfac import cholesky, inverse, statistics
from kinji.kfac.block import Batch, Block


class NormalizationBlock(Block):
    """Scale and shift of a normalization; subclasses shape the block. ``multiplier`` scales the damping."""

    symmetric: tuple[bool, ...] = (False,)
    of_inputs = (False,)

    def __init__(self, name: str, module: statistics.Normalization, multiplier: float = 1.0) -> None:
        bias = statistics.trainable_bias(module)
        super().__init__(name, module, [p for p in (module.weight, bias) if isinstance(p, Parameter)])
        self.layer = module
        self.multiplier = multiplier

    def new_statistic(self, k: int) -> Tensor:
        """Return memory for the Fisher matrix."""
        return self.layer.weight.new_empty(self._shape())

    def add_statistic(
        self, k: int, sums: Tensor, batch: Batch, *, fresh: bool, dtype: torch.dtype | None = None
    ) -> None:
        """Form the Fisher matrix; so little work that it is never rounded."""
        of_examples = statistics.normalization_gradients(self.layer, batch.input, batch.gradient, batch.training)
        fisher = self._fisher(*of_examples)
        sums.copy_(fisher if fresh else sums + fisher)

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the inverse."""
        return [self.new_statistic(0)]

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Invert the damped matrix."""
        self._invert(averaged[0], self.multiplier * damping, out[0])
        return out[0].isfinite().all()

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the gradients by the inverse."""
        solved = self._solve([gradient.flatten() for gradient in gradients], inverted[0])
        return [direction.reshape(gradient.shape) for direction, gradient in zip(solved, gradients, strict=True)]

    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _fisher(self, scale_mp: Tensor, shift_mp: Tensor) -> Tensor:
        raise NotImplementedError

    def _invert(self, fisher: Tensor, damping: float, out: Tensor) -> None:
        raise NotImplementedError

    def _solve(self, gradients: Sequence[Tensor], inverted: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError


class UnitWiseBlock(NormalizationBlock):
    """SP-NGD's unit-wise rule: a 2 x 2 matrix for each pair of scale and shift."""

    def _shape(self) -> tuple[int, ...]:
        return (3, self.layer.weight.numel())

    def _fisher(self, scale_mp: Tensor, shift_mp: Tensor) -> Tensor:
        return statistics.unit_wise_fisher(scale_mp, shift_mp)

    def _invert(self, fisher: Tensor, damping: float, out: Tensor) -> None:
        out.copy_(inverse.unit_wise_inverse(fisher, damping))

    def _solve(self, gradients: Sequence[Tensor], inverted: Tensor) -> Sequence[Tensor]:
        return inverse.precondition_unit_wise(gradients[0], gradients[1], inverted)


class DiagonalBlock(NormalizationBlock):
    """A number for each parameter."""

    def _shape(self) -> tuple[int, ...]:
        return (len(self.parameters), self.layer.weight.numel())

    def _fisher(self, scale_mp: Tensor, shift_mp: Tensor) -> Tensor:
        scale_p, _, shift_p = statistics.unit_wise_fisher(scale_mp, shift_mp)
        return torch.stack([scale_p, shift_p][: len(self.parameters)])

    def _invert(self, fisher: Tensor, damping: float, out: Tensor) -> None:
        torch.reciprocal(fisher + damping, out=out)

    def _solve(self, gradients: Sequence[Tensor], inverted: Tensor) -> Sequence[Tensor]:
        return [gradient * number for gradient, number in zip(gradients, inverted, strict=True)]


class FullBlock(NormalizationBlock):
    """One matrix for all scales and shifts together, as in the code released with the CVPR 2019 paper."""

    symmetric = (True,)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return self._shape()[0] ** 3 // 3

    def _shape(self) -> tuple[int, ...]:
        n = len(self.parameters) * self.layer.weight.numel()
        return (n, n)

    def _fisher(self, scale_mp: Tensor, shift_mp: Tensor) -> Tensor:
        rows_mn = torch.cat([scale_mp, shift_mp][: len(self.parameters)], dim=1)
        return (rows_mn.T @ rows_mn) * len(rows_mn)

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Prepare the damped matrix."""
        return cholesky.prepare(averaged[0], self._shift(averaged[0], damping), out[0])

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Prepare it again."""
        cholesky.mend(averaged[0], self._shift(averaged[0], damping), self.name, out[0])

    def _shift(self, fisher: Tensor, damping: float) -> Tensor:
        return torch.full((), self.multiplier * damping, dtype=fisher.dtype, device=fisher.device)

    def _solve(self, gradients: Sequence[Tensor], inverted: Tensor) -> Sequence[Tensor]:
        solved = cholesky.solve(inverted, torch.cat(list(gradients))[:, None])[:, 0]
        return solved.split([gradient.numel() for gradient in gradients])
