"""Sparsity in all its senses, and the FLOPs per token.

Under `kv="dense"` keys and values are computed for every token; queries, attention core and
output projection for tokens that keep attention; the MLP for tokens that keep the MLP.
Language-model head, K, V and the routers, which the dense model lacks, always count as run.

    parameters per token   routers + head + sum over layers (kv + keep_attn * qo + keep_mlp * mlp)
    FLOPs per token        2 * parameters + sum over layers 4 * keep_attn * heads * head size * S

with S the mean number of tokens attended to, at most a sliding window. Under `kv="skip"`
both kv and S are multiplied by keep_attn too. A stand-in counts for the tokens that skip its
module. A multiply and an add are two FLOPs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from skipgpt.cost.counts import deciding_parameters, head_parameters, layer_costs, parameters_of
from skipgpt.model.surgery import routed_layers, stand_ins
from skipgpt.routing.decision import MODULES, Site


def overhead(model: nn.Module) -> dict[str, float]:
    """What routing adds, as shares of the parameters that a token uses in the dense model.

    Returns:
        `routers`, which every token runs, and `stand_ins`, which it would if it skipped everything.
    """
    dense = head_parameters(model)
    for layer in routed_layers(model):
        cost = layer_costs(layer)
        dense += cost.kv + cost.qo + cost.mlp
    added = sum(parameters_of(each) for each in stand_ins(model).values())
    return {"routers": deciding_parameters(model) / dense, "stand_ins": added / dense}


def flops_per_token(model: nn.Module, context: float, head_tokens: float = 1.0) -> float:
    """FLOPs per token with everything kept, routers left out.

    Args:
        model: with routers.
        context: mean number of tokens that a token attends to.
        head_tokens: share of tokens whose logits are computed.
    """
    total = 2 * head_tokens * head_parameters(model)
    for layer in routed_layers(model):
        cost = layer_costs(layer)
        total += 2 * (cost.kv + cost.qo + cost.mlp) + cost.core_flops(context)
    return total


def sparsities(
    model: nn.Module,
    keep: Mapping[Site, float],
    context: float,
    head_tokens: float = 1.0,
    gone: Collection[Site] = (),
    routed: bool = True,
) -> dict[str, float]:
    """Sparsity in all its senses, at the share of tokens that each site keeps.

    Attention that is `gone` is removed for good, keys and values included. `routed=False` leaves
    out what routers cost, as for a static removal. `context` and `head_tokens` are as in
    `flops_per_token`.

    Returns:
        `module`, `attn` and `mlp` count decisions; `params` and `flops` are one minus what a token
        uses, routers and stand-ins included, over what it uses in the dense model, so that a
        routed model that skips nothing is a little below 0.
    """
    dense_params = run_params = head_tokens * head_parameters(model)
    run_params += routed * deciding_parameters(model)
    run_params += sum(
        (1 - keep[site]) * parameters_of(each) for site, each in stand_ins(model).items()
    )
    core_dense = core_run = 0.0
    layers = routed_layers(model)
    for layer in layers:
        cost = layer_costs(layer)
        attn, mlp = keep[Site(layer.index, "attn")], keep[Site(layer.index, "mlp")]
        dense_params += cost.kv + cost.qo + cost.mlp
        keys = attn if layer.routing.config.kv == "skip" else 1.0
        keys = 0.0 if Site(layer.index, "attn") in gone else keys
        run_params += keys * cost.kv + attn * cost.qo + mlp * cost.mlp
        core = cost.core_flops(context)
        core_dense += core
        core_run += attn * keys * core
    kept = {kind: sum(keep[s] for s in keep if s.module == kind) for kind in MODULES}
    return {
        "module": 1 - sum(keep.values()) / len(keep),
        **{kind: 1 - kept[kind] / len(layers) for kind in MODULES},
        "params": 1 - run_params / dense_params,
        "flops": 1 - (2 * run_params + core_run) / (2 * dense_params + core_dense),
    }
