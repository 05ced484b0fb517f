"""The routed layer in vLLM: `skipgpt.model.layer` on the flat list of a step's tokens.

A step holds the tokens of all running requests, whether they are in prefill or decode: [T, D].
Kept rows are gathered for queries, output projection and MLP, and their updates are scattered
back. A module that no token of the step keeps is not run, so its weights are not read.

Every tensor-parallel rank holds the routers whole, in float32, and reads the same all-reduced
stream, so ranks make the same decisions and run the same collectives.

Shapes: T tokens of a step, N of them kept, D hidden.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.config.settings import from_dict
from skipgpt.routing.router import build_router, input_scale, margins
from skipgpt.routing.stand_in import StandIn
from skipgpt.serving.vllm.attention import SplitAttention
from skipgpt.serving.vllm.families import dense_layer

Threshold = Tensor | float
"""One threshold per token of a step [T], or one for all."""


class RoutedLayer(nn.Module):
    """A decoder layer of Llama's shape, whose tokens run only the modules they keep.

    Args:
        vllm_config: config of the engine.
        prefix: the layer's name, as in `model.layers.3`.

    Attributes:
        skipped: (token, module) pairs that the newest step skipped.
    """

    def __init__(self, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        dense, width = dense_layer(vllm_config, prefix), config.hidden_size
        self.self_attn = SplitAttention(dense.self_attn, vllm_config, f"{prefix}.self_attn")
        self.mlp = dense.mlp
        self.input_layernorm = dense.input_layernorm
        self.post_attention_layernorm = dense.post_attention_layernorm
        self.config = from_dict(RouterConfig, config.router)
        # The engine builds models in the dtype it serves; routing stays in float32.
        self.attn_router = build_router(self.config, width).float()
        self.mlp_router = build_router(self.config, width).float()
        self.skipped = 0
        rank = int(self.config.stand_in)
        self.attn_stand_in = StandIn(width, rank).float() if rank else None
        self.mlp_stand_in = StandIn(width, rank).float() if rank else None

    def forward(
        self,
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        threshold: Threshold,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer as vLLM's models call it: the stream is the sum of two tensors.

        These are the last update `hidden_states` [T, D] and the stream before it, `residual`; where
        that is None, `hidden_states` is the stream itself. Returns the MLP's update and the stream
        before it, [T, D] each.
        """
        if residual is None:
            read, entering = self.input_layernorm(hidden_states), hidden_states.clone()
        else:
            read, entering = self.input_layernorm(hidden_states, residual)
        attn, mlp = self._decide(entering, threshold)
        rows = kept_rows(attn)
        self.skipped = 0 if rows is None else len(entering) - len(rows)
        update = self.self_attn(positions, read, rows)
        if keeps_all(threshold):
            read, stream = self.post_attention_layernorm(update, entering)
            return self.mlp(read), stream
        stream = entering
        if rows is None:
            stream.add_(update)
        elif update is not None:
            stream.index_add_(0, rows, update)
        if self.attn_stand_in and rows is not None and attn is not None:
            skipped = (~attn).nonzero().squeeze(-1)
            entered = stream.index_select(0, skipped)  # nothing was added to these rows
            stream.index_add_(0, skipped, self.attn_stand_in(entered))
        if mlp is None:
            margin = self.mlp_router.margin(stream, input_scale(stream, self.config))
            mlp = margin > threshold
        return self._mlp_update(stream, mlp), stream

    def _mlp_update(self, stream: Tensor, keep: Tensor) -> Tensor:
        """Return what the MLP, or its stand-in, adds to the stream [T, D]."""
        rows = kept_rows(keep)
        if rows is None:
            whole: Tensor = self.mlp(self.post_attention_layernorm(stream))
            return whole
        self.skipped += len(stream) - len(rows)
        update = stream.new_zeros(stream.shape)
        if len(rows):
            read = self.post_attention_layernorm(stream.index_select(0, rows))
            update.index_copy_(0, rows, self.mlp(read))
        if self.mlp_stand_in:
            skipped = (~keep).nonzero().squeeze(-1)
            update.index_copy_(0, skipped, self.mlp_stand_in(stream.index_select(0, skipped)))
        return update

    def _decide(
        self, entering: Tensor, threshold: Threshold
    ) -> tuple[Tensor | None, Tensor | None]:
        """Decide which tokens keep attention and the MLP, [T] bool each.

        None for attention means all tokens; None for the MLP means all tokens, or not known
        before attention has run.
        """
        if keeps_all(threshold):
            return None, None
        scale = input_scale(entering, self.config)
        if self.config.decides == "module" and self.config.input == "layer_input":
            attn, mlp = margins(entering, self.attn_router, self.mlp_router, scale=scale)
            return attn > threshold, mlp > threshold
        keep = self.attn_router.margin(entering, scale) > threshold
        return keep, keep if self.config.decides == "layer" else None


def keeps_all(threshold: Threshold) -> bool:
    """Return whether every margin is above the threshold, so that routers need not run."""
    return isinstance(threshold, float) and threshold == -math.inf


def kept_rows(keep: Tensor | None) -> Tensor | None:
    """Return the indices [N] of kept tokens; None where all are kept."""
    if keep is None:
        return None
    rows = keep.nonzero().squeeze(-1)
    return None if len(rows) == len(keep) else rows
