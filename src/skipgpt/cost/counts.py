"""Parameter counts of a routed layer, by which tokens have to run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.model.attention.split import query_width
from skipgpt.model.families.family import has
from skipgpt.model.families.linear import in_width, out_width
from skipgpt.model.loading.bitsandbytes import size
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import MODULES


@dataclass(frozen=True)
class ModuleCosts:
    """Counts of one layer.

    Attributes:
        kv: parameters of attention that run for every token: keys, values, their norms.
        qo: parameters of attention that run for kept tokens: queries and output.
        mlp: parameters of the MLP that run for a kept token.
        core_width: heads times head size; the attention core costs 4 FLOPs per unit and attended
            token.
        cached: numbers of keys and values that the cache holds per token.
        window: most tokens that a token attends to, itself among them; None for all before it.
    """

    kv: int
    qo: int
    mlp: int
    core_width: int
    cached: int
    window: int | None = None

    def attended(self, cached: int, tokens: float) -> float:
        """Mean number of tokens that a token attends to, itself among them.

        It is one of `tokens` new ones behind `cached` ones.
        """
        whole = cached + (tokens + 1) / 2
        if self.window is None or cached + tokens <= self.window:
            return whole
        if cached >= self.window:
            return self.window
        growing = self.window - cached
        return (growing * (cached + (growing + 1) / 2) + (tokens - growing) * self.window) / tokens

    def core_flops(self, context: float) -> float:
        """FLOPs of the attention core per token, if one attends to so many on average.

        Without a window that is (n + 1) / 2 for a text of n tokens.
        """
        return 4 * self.core_width * self.attended(0, 2 * context - 1)

    def held(self, tokens: int) -> int:
        """Tokens of a context that the cache still holds at the next decode step."""
        return tokens if self.window is None else min(tokens, self.window - 1)


def layer_costs(layer: Any) -> ModuleCosts:
    """The counts of a routed layer, LoRA left out; of experts, those that a token runs."""
    family = layer.family
    attn, mlp = getattr(layer, family.attn), getattr(layer, family.mlp)
    queries = sum(parameters_of(getattr(attn, name)) for name in family.query if has(attn, name))
    if family.fused and (width := query_width(layer)):
        fused = getattr(attn, family.fused)
        queries = parameters_of(fused) * width // out_width(fused)
    output = getattr(attn, family.output)
    qo = queries + parameters_of(output)
    experts = parameters_of(mlp.experts) if has(mlp, "experts") else 0
    return ModuleCosts(
        kv=parameters_of(attn) - qo,
        qo=qo,
        mlp=parameters_of(mlp) - int(experts * (1 - family.share_of_experts(layer))),
        core_width=_core_width(attn, in_width(output)),
        cached=_cached(layer, in_width(output)),
        window=_window(layer),
    )


def _core_width(attn: Any, width: int) -> int:
    """Heads times head size; the mean of keys' and values' where they differ, as in DeepSeek-V3."""
    if not has(attn, "qk_head_dim"):
        return width
    return int(width * (attn.qk_head_dim + attn.v_head_dim) / (2 * attn.v_head_dim))


def _window(layer: Any) -> int | None:
    config = getattr(getattr(layer, layer.family.attn), "config", None)
    kinds: Any = getattr(config, "layer_types", None)
    slides = not kinds or kinds[layer.index] == "sliding_attention"
    window: int | None = getattr(config, "sliding_window", None)
    return window if slides else None


def _cached(layer: Any, query_width: int) -> int:
    """Numbers cached per token: the outputs of K and V, or the latent if the cache holds that."""
    family = layer.family
    attn = getattr(layer, family.attn)
    if has(attn, "kv_lora_rank"):
        return int(attn.kv_lora_rank + attn.qk_rope_head_dim)
    if getattr(attn, "new_decoder_architecture", False):
        return 2 * query_width  # Falcon repeats the heads of keys before it caches them
    if family.fused:
        return out_width(getattr(attn, family.fused)) - query_width
    return sum(out_width(getattr(attn, name)) for name in family.key_value)


def layer_bytes(layer: Any) -> tuple[float, float, float]:
    """The bytes of a layer's weights as stored: of keys and values, queries and output, and MLP.

    All experts are counted, and LoRA is left out.
    """
    family, costs = layer.family, layer_costs(layer)
    attn, mlp = getattr(layer, family.attn), getattr(layer, family.mlp)
    # Quantised or not, attention's projections are all stored in one format.
    each = bytes_of(attn) / (costs.kv + costs.qo)
    return costs.kv * each, costs.qo * each, bytes_of(mlp)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters as they are stored, LoRA left out."""
    named = module.named_parameters()
    return sum(p.numel() * p.element_size() for name, p in named if "lora_" not in name)


def parameters_of(module: nn.Module) -> int:
    """Parameters of a module, LoRA left out."""
    return sum(size(p) for name, p in module.named_parameters() if "lora_" not in name)


def deciding_parameters(model: nn.Module) -> int:
    """Parameters of the routers that run: attention's alone where they decide for whole layers."""
    modules = ("attn",) if routing_state(model).config.decides == "layer" else MODULES
    return sum(
        parameters_of(each) for site, each in routers(model).items() if site.module in modules
    )


def head_parameters(model: nn.Module) -> int:
    """Parameters of the language-model head; an embedding look-up is free."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return size(head.weight)
