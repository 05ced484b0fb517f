"""Take a training step as the authors' code takes it, written anew, to be timed beside ours.

What it does otherwise than `skipgpt`, in both stages:

- every token runs every module, and the output is multiplied by the gate: healing, too
- routers are asked one by one, both logits are noised, and a softmax makes the two gates
- decisions are sampled even where routers are frozen, at temperature 1
- each layer looks for NaN in what it is given, adds up what was skipped and copies the decisions of
  both modules to the host, each of which waits for the device
- logits are computed for every token
- the budget term weighs 20

Where the released code has a router of two layers, this has the linear one of the paper, as ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BUDGET_WEIGHT = 20.0


class AuthorsLayer(nn.Module):
    """Around a decoder layer of a Llama.

    Args:
        block: the layer.
        width: its hidden size.
    """

    def __init__(self, block: Any, width: int) -> None:
        super().__init__()
        self.block = block
        self.attn_router = nn.Linear(width, 2)
        self.mlp_router = nn.Linear(width, 2)
        self.temperature = 1.0
        self.tokens = self.skipped_attn = self.skipped_mlp = 0.0
        self.attn_share: Tensor | float = 1.0
        self.mlp_share: Tensor | float = 1.0
        self.on_host: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """Run the layer: [B, T, D] in, [B, T, D] out."""
        if torch.isnan(hidden_states).any():
            warnings.warn("NaN in what a layer is given", stacklevel=2)
        entering, real = hidden_states, torch.ones_like(hidden_states[..., 0])
        self.tokens += real.sum().item()

        gate, skipped = self._sampled(self.attn_router, entering, real)
        self.skipped_attn += skipped.sum().item()
        self.attn_share = gate.mean()
        self.on_host["attn"] = skipped.float().detach().cpu().numpy()
        update, _ = self.block.self_attn(self.block.input_layernorm(entering), **given)
        stream = update * gate.unsqueeze(-1) + entering

        # Both routers read what enters the layer.
        gate, skipped = self._sampled(self.mlp_router, entering, real)
        self.skipped_mlp += skipped.sum().item()
        self.mlp_share = gate.mean()
        self.on_host["mlp"] = skipped.float().detach().cpu().numpy()
        update = self.block.mlp(self.block.post_attention_layernorm(stream))
        return update * gate.unsqueeze(-1) + stream

    def _sampled(self, router: nn.Linear, read: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the gate [B, T], and which real tokens skip, [B, T]."""
        logits = router(read.to(router.weight.dtype)).to(read.dtype)
        pair = functional.gumbel_softmax(logits, tau=self.temperature, hard=True)
        return pair[..., 0], pair[..., 1] * real


def with_authors_layers(model: Any) -> Any:
    """Wrap every layer of a Llama, in place."""
    width, layers = model.config.hidden_size, model.model.layers
    for index, block in enumerate(layers):
        layers[index] = AuthorsLayer(block, width).to(model.device)
    return model


def authors_loss(model: Any, ids: Tensor, sparsity: float) -> Tensor:
    """Return the loss of a batch [B, T]; with the budget term where routers train."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    layers = [each for each in model.modules() if isinstance(each, AuthorsLayer)]
    if not layers[0].attn_router.weight.requires_grad:
        return loss
    attn = sum(layer.attn_share for layer in layers) / len(layers)
    mlp = sum(layer.mlp_share for layer in layers) / len(layers)
    return loss + BUDGET_WEIGHT * abs((1 - sparsity) - (attn + mlp) / 2)


def authors_step(
    model: Any, ids: Tensor, sparsity: float, rate: float = 2e-3
) -> Callable[[], Tensor]:
    """Make a function that takes an optimizer step; `requires_grad` says what trains."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    model.train()

    def step() -> Tensor:
        loss = authors_loss(model, ids, sparsity)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
