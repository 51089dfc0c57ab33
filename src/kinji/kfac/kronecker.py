"""Blocks of linear layers, convolutions and embeddings: Kronecker products ``G (x) A``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kinji.kfac import cholesky, inverse, statistics
from kinji.kfac.block import Batch, Block
from kinji.kfac.columns import Columns, are_few, make_up
from kinji.kfac.ownership import inversion_flops
from kinji.kfac.products import times_transposed


class KroneckerBlock(Block):
    """Weight and bias of a linear layer or a convolution: ``G (x) A``, for each group of a convolution."""

    symmetric = (True, True)
    of_inputs = (True, False)

    def __init__(self, name: str, module: statistics.KroneckerLayer) -> None:
        bias = statistics.trainable_bias(module)
        super().__init__(name, module, [p for p in (module.weight, bias) if isinstance(p, Parameter)])
        self.layer = module
        self.groups = module.groups if isinstance(module, nn.Conv2d) else 1
        self.outputs = len(module.weight) // self.groups
        self.inputs = module.weight[0].numel() + (bias is not None)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return self.groups * inversion_flops(self.inputs, self.outputs)

    def new_statistic(self, k: int) -> Tensor:
        """Return memory for ``A`` or ``G``."""
        n = (self.inputs, self.outputs)[k]
        return self.layer.weight.new_empty((n, n) if self.groups == 1 else (self.groups, n, n))

    def add_statistic(
        self, k: int, sums: Tensor, batch: Batch, *, fresh: bool, dtype: torch.dtype | None = None
    ) -> None:
        """Form ``A`` or ``G``."""
        if k == 0:
            statistics.add_input_factor(self.layer, batch.input, sums, fresh=fresh, dtype=dtype)
        else:
            statistics.add_output_factor(self.layer, batch.gradient, sums, fresh=fresh, dtype=dtype)

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the prepared ``A`` and ``G``."""
        return [self.new_statistic(k) for k in (0, 1)]

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Prepare the damped ``A`` and ``G``."""
        shifts = inverse.damping_shifts(averaged[0], averaged[1], damping)
        good_a, good_g = map(cholesky.prepare, averaged, shifts, out)
        return good_a & good_g

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Prepare again what could not be."""
        shifts = inverse.damping_shifts(averaged[0], averaged[1], damping)
        for factor, shift, letter, memory in zip(averaged, shifts, "AG", out, strict=True):
            if not cholesky.prepare(factor, shift, memory):
                cholesky.mend(factor, shift, f"{self.name}: factor {letter}", memory)

    def has_few_columns(self, output: Tensor) -> bool:
        """Whether the layer's output has so few positions that its gradient is better taken by columns."""
        positions = output.numel() // len(self.layer.weight)
        return self.groups == 1 and are_few(positions, self.inputs, self.outputs)

    def columns(self, batch: Batch) -> Columns:
        """Return the columns of which the gradient is the product."""
        dtype = self.layer.weight.dtype
        x_ir = statistics.input_columns(self.layer, batch.input, dtype)
        return x_ir, statistics.output_columns(self.layer, batch.gradient, dtype)

    def precondition(
        self, gradients: Sequence[Tensor], inverted: Sequence[Tensor], columns: Columns | None = None
    ) -> list[Tensor]:
        """Multiply by ``(G (x) A)^-1``, the bias's gradient being the last column; by columns, if they make it up."""
        widths = [gradient[0].numel() for gradient in gradients]
        rows = len(gradients[0])
        matrices = [gradient.reshape(rows, -1) for gradient in gradients]
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)
        if columns is not None and make_up(joined, columns):
            solved = times_transposed(cholesky.solve(inverted[1], columns[1]), cholesky.solve(inverted[0], columns[0]))
        else:
            solved = self._solve(joined.unflatten(0, (self.groups, -1)) if self.groups > 1 else joined, inverted)
        pieces = solved.reshape(rows, -1).split(widths, dim=1)
        return [piece.reshape(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)]

    def _solve(self, gradient_oi: Tensor, inverted: Sequence[Tensor]) -> Tensor:
        return inverse.precondition(gradient_oi, inverted[0], inverted[1])


class EigenBlock(KroneckerBlock):
    """The same block in the eigenvalue form, damped as a whole instead of factor by factor."""

    inverts_in_place = False

    def has_few_columns(self, output: Tensor) -> bool:
        """No: the gradient is needed between the products."""
        return False

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the eigenvectors and eigenvalues of ``A`` and of ``G``, and the damping."""
        factors = [self.new_statistic(k) for k in (0, 1)]
        return [part for f in factors for part in (f, f.new_empty(f.shape[:-1]))] + [factors[0].new_empty(())]

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Find the eigenvalues and eigenvectors of ``A`` and ``G``; `torch.linalg.LinAlgError` if there are none."""
        a, g = (inverse.eigen_form(f, f"{self.name}: factor {x}") for f, x in zip(averaged, "AG", strict=True))
        for memory, part in zip(out, (*a, *g), strict=False):
            memory.copy_(part)
        out[-1].fill_(damping)
        return out[-1].isfinite()

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Try again, to say what is wrong."""
        self.invert(averaged, damping, out)

    def _solve(self, gradient_oi: Tensor, inverted: Sequence[Tensor]) -> Tensor:
        vectors_a, values_a, vectors_g, values_g, damping = inverted
        return inverse.precondition_eigen(gradient_oi, (vectors_a, values_a), (vectors_g, values_g), damping)


class EmbeddingBlock(Block):
    """An embedding: ``G (x) A`` with a diagonal ``A``."""

    symmetric = (False, True)
    of_inputs = (True, False)

    def __init__(self, name: str, module: nn.Embedding) -> None:
        super().__init__(name, module, list(module.parameters()))
        self.layer = module

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        outputs = self.layer.embedding_dim
        return outputs**3 // 3 + 2 * outputs * self.layer.weight.numel()

    def new_statistic(self, k: int) -> Tensor:
        """Return memory for the diagonal of ``A``, or for ``G``."""
        entries, outputs = self.layer.weight.shape
        return self.layer.weight.new_empty((entries,) if k == 0 else (outputs, outputs))

    def add_statistic(
        self, k: int, sums: Tensor, batch: Batch, *, fresh: bool, dtype: torch.dtype | None = None
    ) -> None:
        """Form the diagonal of ``A``, or ``G``."""
        if k == 1:
            gradient = batch.gradient
            statistics.add_embedding_output_factor(self.layer, batch.input, gradient, sums, fresh=fresh, dtype=dtype)
        else:
            frequencies = statistics.embedding_frequencies(self.layer, batch.input)
            sums.copy_(frequencies if fresh else sums + frequencies)

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the inverse of ``A``'s diagonal and the prepared ``G``."""
        return [self.new_statistic(k) for k in (0, 1)]

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Invert the damped ``A`` and prepare the damped ``G``."""
        shift_a, shift_g = inverse.damping_shifts(averaged[0], averaged[1], damping)
        torch.reciprocal(averaged[0] + shift_a, out=out[0])
        return cholesky.prepare(averaged[1], shift_g, out[1])

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Prepare ``G`` again."""
        _, shift_g = inverse.damping_shifts(averaged[0], averaged[1], damping)
        cholesky.mend(averaged[1], shift_g, f"{self.name}: factor G", out[1])

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply each entry's gradient by ``G^-1`` and its own number."""
        return [cholesky.solve(inverted[1], gradients[0].T).T * inverted[0][:, None]]
