"""What a forward costs, given how much is kept: parameters and FLOPs.

Under `kv="dense"` keys and values are computed for every token; queries, attention core and
output projection for tokens that keep attention; the MLP for tokens that keep the MLP.
Language-model head, K and V are always counted as run, routers too, which the dense model has not.

    parameters a token   routers + head + sum over layers (kv + keep_attn * qo + keep_mlp * mlp)
    FLOPs a token        2 * parameters + sum over layers 4 * keep_attn * heads * head size * S

with S the mean number of tokens attended to. Under `kv="skip"` both kv and S are multiplied by
keep_attn too. A stand-in counts for the tokens that skip its module. A multiply and an add are
two FLOPs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.model.family import has
from skipgpt.model.halves import query_width
from skipgpt.model.linear import in_width, out_width
from skipgpt.model.quantized import size
from skipgpt.model.surgery import routed_layers, routers, stand_ins
from skipgpt.model.trace import MODULES, routing_state
from skipgpt.routing.decision import Site


@dataclass(frozen=True)
class ModuleCosts:
    """Counts of one layer.

    Attributes:
        kv: parameters of attention that run for every token: keys, values, their norms.
        qo: parameters of attention that run for kept tokens: queries and output.
        mlp: parameters of the MLP that run for a kept token.
        core_width: heads times head size; the attention core costs 4 FLOPs a unit and attended
            token.
    """

    kv: int
    qo: int
    mlp: int
    core_width: int


def layer_costs(layer: Any) -> ModuleCosts:
    """The counts of a routed layer, LoRA left out; of experts, those that a token runs."""
    family = layer.family
    attn, mlp = getattr(layer, family.attn), getattr(layer, family.mlp)
    queries = sum(_size(getattr(attn, name)) for name in family.query if has(attn, name))
    if family.fused and (width := query_width(layer)):
        fused = getattr(attn, family.fused)
        queries = _size(fused) * width // out_width(fused)
    output = getattr(attn, family.output)
    qo = queries + _size(output)
    experts, active = _experts(layer)
    return ModuleCosts(
        kv=_size(attn) - qo,
        qo=qo,
        mlp=_size(mlp) - int(experts * (1 - active)),
        core_width=_core_width(attn, in_width(output)),
    )


def _core_width(attn: Any, width: int) -> int:
    """Heads times head size; the mean of keys' and values' where they differ, as in DeepSeek-V3."""
    if not has(attn, "qk_head_dim"):
        return width
    return int(width * (attn.qk_head_dim + attn.v_head_dim) / (2 * attn.v_head_dim))


def _size(module: nn.Module) -> int:
    return sum(size(p) for name, p in module.named_parameters() if "lora_" not in name)


def _experts(layer: Any) -> tuple[int, float]:
    """Parameters of the routed experts of a layer, and the share of them that a token runs."""
    mlp = getattr(layer, layer.family.mlp)
    if not has(mlp, "experts"):
        return 0, 1.0
    config = getattr(layer, layer.family.attn).config
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next(getattr(config, name) for name in names if has(config, name))
    return _size(mlp.experts), config.num_experts_per_tok / total


def flops_per_token(model: nn.Module, context: float, head_tokens: float = 1.0) -> float:
    """FLOPs a token of the model with everything kept, routers left out.

    Args:
        model: with routers.
        context: mean number of tokens that a token attends to.
        head_tokens: share of tokens whose logits are computed.
    """
    total = 2 * head_tokens * _head(model)
    for layer in routed_layers(model):
        cost = layer_costs(layer)
        total += 2 * (cost.kv + cost.qo + cost.mlp) + 4 * cost.core_width * context
    return total


def sparsities(
    model: nn.Module,
    keep: Mapping[Site, float],
    context: float,
    head_tokens: float = 1.0,
    gone: Collection[Site] = (),
    routed: bool = True,
) -> dict[str, float]:
    """All the senses of sparsity, of one set of keep ratios.

    Args:
        model: with routers.
        keep: share of tokens that each site runs.
        context: mean number of tokens that a token attends to.
        head_tokens: share of tokens whose logits are computed.
        gone: attention that is removed for good, keys and values included.
        routed: whether routers run; False for a static removal.

    Returns:
        `module`, `attn` and `mlp` count decisions; `params` and `flops` are one minus what a token
        uses, routers and stand-ins included, over what it uses in the dense model, so that a
        routed model that skips nothing is a little below 0.
    """
    dense_params = run_params = head_tokens * _head(model)
    run_params += routed * _deciding(model)
    run_params += sum((1 - keep[site]) * _size(each) for site, each in stand_ins(model).items())
    core_dense = core_run = 0.0
    layers = routed_layers(model)
    for layer in layers:
        cost = layer_costs(layer)
        attn, mlp = keep[Site(layer.index, "attn")], keep[Site(layer.index, "mlp")]
        dense_params += cost.kv + cost.qo + cost.mlp
        keys = attn if layer.routing.config.kv == "skip" else 1.0
        keys = 0.0 if Site(layer.index, "attn") in gone else keys
        run_params += keys * cost.kv + attn * cost.qo + mlp * cost.mlp
        core_dense += 4 * cost.core_width * context
        core_run += attn * 4 * cost.core_width * keys * context
    shares = {kind: [keep[s] for s in keep if s.module == kind] for kind in ("attn", "mlp")}
    return {
        "module": 1 - sum(keep.values()) / len(keep),
        "attn": 1 - sum(shares["attn"]) / len(layers),
        "mlp": 1 - sum(shares["mlp"]) / len(layers),
        "params": 1 - run_params / dense_params,
        "flops": 1 - (2 * run_params + core_run) / (2 * dense_params + core_dense),
    }


def _deciding(model: nn.Module) -> int:
    """Parameters of the routers that run: attention's alone where they speak for whole layers."""
    modules = ("attn",) if routing_state(model).config.decides == "layer" else MODULES
    return sum(_size(each) for site, each in routers(model).items() if site.module in modules)


def _head(model: nn.Module) -> int:
    """Parameters of the language-model head; an embedding look-up is free."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return size(head.weight)
