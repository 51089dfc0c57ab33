"""Which parameters of a model make a diagonal block of the Fisher matrix together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from kinji.kfac import statistics
from kinji.kfac.block import Block
from kinji.kfac.kronecker import EigenBlock, EmbeddingBlock, KroneckerBlock
from kinji.kfac.normalization import DiagonalBlock, FullBlock, NormalizationBlock, UnitWiseBlock

NormalizationRule = Literal["unit-wise", "full", "diagonal", "first-order"]
InverseForm = Literal["cholesky", "eigen"]

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


def _each_parameter_once(blocks: Sequence[Block]) -> list[Block]:
    seen: set[Parameter] = set()
    kept = []
    for block in blocks:
        if seen.isdisjoint(block.parameters):
            kept.append(block)
        seen.update(block.parameters)
    return kept
