"""The diagonal blocks of the Fisher matrix: which parameters each holds, and what the stages do with them.

A block turns a layer's input and output gradient into statistics, statistics into an inverse, and gradients
into an update direction. It holds no state: statistics and inverses belong to the optimizer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from kinji.kfac import cholesky, inverse, statistics
from kinji.kfac.ownership import inversion_flops

NormalizationRule = Literal["unit-wise", "full", "diagonal", "first-order"]
InverseForm = Literal["cholesky", "eigen"]


class Block:
    """Parameters handled by the first-order rule: their block of the Fisher matrix is the identity.

    Attributes
    ----------
    name
        The layer's or parameter's name in the model.
    module
        The layer, None if the block is a single parameter.
    parameters
        What the block updates.
    symmetric
        For each statistic, whether it is made of symmetric matrices, of which one triangle is enough.
    of_inputs
        For each statistic, whether the layer's inputs alone make it.
    """

    symmetric: tuple[bool, ...] = ()
    of_inputs: tuple[bool, ...] = ()

    def __init__(self, name: str, module: nn.Module | None, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.module = module
        self.parameters = tuple(parameters)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return sum(parameter.numel() for parameter in self.parameters)

    def new_statistic(self, k: int) -> Tensor:
        """Return memory for the block's k-th statistic."""
        raise NotImplementedError

    def add_statistic(
        self, k: int, sums: Tensor, batch: Batch, *, fresh: bool, dtype: torch.dtype | None = None
    ) -> None:
        """Form the k-th statistic of one batch and add it to a sum, which holds nothing yet if ``fresh``."""
        raise NotImplementedError

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the inverse of the block."""
        return []

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Invert the damped block and return whether that went well (), left on the device; `mend` it if not."""
        raise NotImplementedError

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Invert by slower means; `torch.linalg.LinAlgError` if no damping helps."""
        raise torch.linalg.LinAlgError(f"{self.name}: the damped block has no inverse; damping is {damping}")

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the gradients of the parameters by the inverse of the block, into new memory."""
        return [gradient.clone() for gradient in gradients]


class Batch:
    """What one backward pass shows of a layer: its input, whether it was training, and the gradient of its output."""

    def __init__(self, input_: Tensor, training: bool, gradient: Tensor | None = None) -> None:
        self.input = input_
        self.training = training
        self._gradient = gradient

    @property
    def gradient(self) -> Tensor:
        """The gradient; asked for only by statistics that are not of inputs alone."""
        assert self._gradient is not None
        return self._gradient


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

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply by ``(G (x) A)^-1``, the bias's gradient being the last column."""
        columns = [gradient[0].numel() for gradient in gradients]
        rows = len(gradients[0])
        matrices = [gradient.reshape(rows, -1) for gradient in gradients]
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)
        grouped = joined if self.groups == 1 else joined.unflatten(0, (self.groups, -1))
        pieces = self._solve(grouped, inverted).reshape(rows, -1).split(columns, dim=1)
        return [piece.reshape(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)]

    def _solve(self, gradient_oi: Tensor, inverted: Sequence[Tensor]) -> Tensor:
        return inverse.precondition(gradient_oi, inverted[0], inverted[1])


class EigenBlock(KroneckerBlock):
    """The same block in the eigenvalue form, damped as a whole instead of factor by factor."""

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
            _add(statistics.embedding_frequencies(self.layer, batch.input), sums, fresh)

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
        _add(self._fisher(*of_examples), sums, fresh)

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


NORMALIZATIONS: dict[str, type[NormalizationBlock]] = {
    "unit-wise": UnitWiseBlock,
    "full": FullBlock,
    "diagonal": DiagonalBlock,
}


def fisher_blocks(
    model: nn.Module,
    normalization: NormalizationRule = "unit-wise",
    *,
    inverse: InverseForm = "cholesky",
    normalization_damping: float = 1.0,
    exclude: Collection[nn.Module] = (),
) -> list[Block]:
    """Divide the trainable parameters of a model into blocks, in the order of its modules.

    Linear layers, convolutions, embeddings and (but for ``first-order``) batch and layer normalizations get their own
    kind of block if their weight is trained and shared with no other layer, and they are not excluded; every
    parameter left is a first-order block of its own. Other parameters are those of `kinji.kfac.KFAC`.
    """
    for value, choices in ((normalization, NormalizationRule), (inverse, InverseForm)):
        if value not in get_args(choices):
            raise ValueError(f"one of {', '.join(get_args(choices))} is wanted, not {value!r}")
    uses: dict[Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[parameter] = uses.get(parameter, 0) + 1
    blocks: list[Block] = []
    for name, module in model.named_modules():
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        whole = "weight" in trainable and all(uses[parameter] == 1 for parameter in trainable.values())
        block = None
        if whole and module not in exclude:
            block = _block_of(name, module, normalization, inverse, normalization_damping)
        named = [Block(f"{name}.{key}".lstrip("."), None, [parameter]) for key, parameter in trainable.items()]
        blocks.extend(named if block is None else [block])
    return _each_parameter_once(blocks)


def _block_of(
    name: str, module: nn.Module, normalization: NormalizationRule, form: InverseForm, multiplier: float
) -> Block | None:
    if isinstance(module, NonDynamicallyQuantizableLinear):  # inside nn.MultiheadAttention, which never calls it
        return None
    if isinstance(module, statistics.KroneckerLayer):
        return (EigenBlock if form == "eigen" else KroneckerBlock)(name, module)
    if isinstance(module, nn.Embedding) and not (module.sparse or module.scale_grad_by_freq):
        return EmbeddingBlock(name, module)
    if isinstance(module, statistics.Normalization) and normalization != "first-order":
        pairs = normalization != "unit-wise" or statistics.trainable_bias(module) is not None
        return NORMALIZATIONS[normalization if pairs else "diagonal"](name, module, multiplier)
    return None


def _add(term: Tensor, sums: Tensor, fresh: bool) -> None:
    sums.copy_(term if fresh else sums + term)


def _each_parameter_once(blocks: Sequence[Block]) -> list[Block]:
    seen: set[Parameter] = set()
    kept = []
    for block in blocks:
        if seen.isdisjoint(block.parameters):
            kept.append(block)
        seen.update(block.parameters)
    return kept
