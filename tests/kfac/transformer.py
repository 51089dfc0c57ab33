"""A block as in BERT that learns to copy each token's neighbour, on any number of ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC, Communicator


class Transformer(nn.Module):
    """A block as in BERT (attention of two heads, then a perceptron), with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Embedding(6, 8)
        self.query, self.key, self.value, self.joined = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.3)

    def forward(self, tokens_ms: Tensor) -> Tensor:
        x = self.embedding(tokens_ms) + self.positions(torch.arange(tokens_ms.shape[1]).expand_as(tokens_ms))
        heads = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.first(x + self.joined(attended))
        return self.output(self.second(x + self.down(functional.gelu(self.up(x)))))


def learn(
    steps: int, communicator: Communicator | None = None, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list[Tensor], list[float]]:
    """Return the weights and the losses of this rank's part of eight sequences."""
    torch.manual_seed(5)
    model, tokens = Transformer().to(dtype), torch.randint(0, 11, (8, 6))
    part = tokens[communicator.rank :: communicator.size] if communicator else tokens
    tied = {"params": [model.embedding.weight], "lr": 0.1}
    optimizer = KFAC(model, lr=0.01, damping=1e-2, param_groups=[tied], communicator=communicator, **options)
    losses = []
    for _ in range(steps):
        logits = model(part)
        optimizer.zero_grad()
        optimizer.form_statistics(logits)
        loss = functional.cross_entropy(logits.flatten(0, 1), part.roll(1, dims=1).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [parameter.detach() for parameter in model.parameters()], losses
