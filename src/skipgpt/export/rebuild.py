"""Build a model of the same family whose layers are assembled from modules of another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skipgpt.errors import UnsupportedModelError
from skipgpt.export.checks import head_is_tied
from skipgpt.export.pairing import Pair
from skipgpt.model.families.family import has
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Module, Site

_ONE_PER_LAYER: dict[str, Module] = {
    "layer_types": "attn",
    "no_rope_layers": "attn",
    "mlp_layer_types": "mlp",
}
"""Lists in configs with an entry for each layer, and the module that the entry is about."""

_DEPEND_ON_PLACE = ("scale_attn_by_inverse_layer_idx",)
"""Settings under which what a layer computes depends on its index."""


def check_movable(model: Any) -> None:
    """Raise UnsupportedModelError if a layer may compute something else at another index.

    That is so where the config makes layers depend on their index, or has an unknown list with an
    entry per layer.
    """
    values = model.config.to_dict()
    count = len(routed_layers(model))
    trouble = [f"{name} = true" for name in _DEPEND_ON_PLACE if values.get(name)]
    trouble += [
        f"{name}, a list with an entry for each layer"
        for name, value in values.items()
        if "layer" in name
        and isinstance(value, list | tuple)
        and len(value) == count
        and name not in (*_ONE_PER_LAYER, "mlp_only_layers")
    ]
    if trouble:
        raise UnsupportedModelError(
            f"removing layers from a model of type {model.config.model_type!r}",
            got=f"a config with {' and '.join(trouble)}",
            expected="layers that compute the same in another place, or a list that "
            f"export/rebuild.py can cut: {', '.join((*_ONE_PER_LAYER, 'mlp_only_layers'))}",
            todo="use `skipgpt export --merged`, which keeps every layer",
        )


def moves_whole_layers(model: Any) -> bool:
    """Return whether the two modules of a layer have to stay together.

    They have to where the MLP reads what attention reads, and where some parameter of a layer
    belongs to both modules or to neither.
    """
    return any(
        layer.family.is_parallel(layer)
        or any(_owner(layer, name) not in ("attn", "mlp") for name in _layer_state(layer))
        for layer in routed_layers(model)
    )


def module_parameters(model: Any) -> dict[Site, int]:
    """Count each module's parameters with its norms; what is not the MLP's alone is attention's."""
    counts: dict[Site, int] = {}
    for layer in routed_layers(model):
        for name, tensor in _layer_state(layer).items():
            site = Site(layer.index, _module(layer, name))
            counts[site] = counts.get(site, 0) + tensor.numel()
    return counts


def smaller_model(model: Any, pairs: Sequence[Pair]) -> Any:
    """Build the model, LoRA merged, with these layers instead of its own, without routers.

    The weights are shared. Raises UnsupportedModelError as `check_movable` does.
    """
    check_movable(model)
    with torch.device("meta"):
        smaller = type(model)(_smaller_config(model, pairs))
    smaller.load_state_dict(smaller_state(model, pairs), assign=True)
    smaller.tie_weights()
    smaller.generation_config = model.generation_config
    return smaller.eval()


def smaller_state(model: Any, pairs: Sequence[tuple[int | None, int | None]]) -> dict[str, Tensor]:
    """Return the weights renamed to their new layers; a new layer may lack either module."""
    layers = routed_layers(model)
    names = {id(module): name for name, module in model.named_modules()}
    prefixes = [names[id(layer)] + "." for layer in layers]
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(tuple(prefixes))
    }
    for place, (attn, mlp) in enumerate(pairs):
        for module, source in (("attn", attn), ("mlp", mlp)):
            if source is None:
                continue
            layer = layers[source]
            for name, tensor in _layer_state(layer).items():
                if _module(layer, name) == module:
                    state[prefixes[place] + name] = tensor
    return state


def _smaller_config(model: Any, pairs: Sequence[Pair]) -> Any:
    """Return the config of the new layers; entries about a module move with it."""
    config = model.config
    values = config.to_dict() | {"tie_word_embeddings": head_is_tied(model)}
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(pairs)
    attns, mlps = zip(*pairs, strict=True)
    for name, module in _ONE_PER_LAYER.items():
        if values.get(name):
            values[name] = [values[name][n] for n in (attns if module == "attn" else mlps)]
    if (first := values.get("first_k_dense_replace")) is not None:
        values["first_k_dense_replace"] = sum(n < first for n in mlps)
    if (listed := values.get("mlp_only_layers")) is not None:
        step = values.get("decoder_sparse_step", 1)
        dense = [place for place, n in enumerate(mlps) if n in listed or (n + 1) % step]
        values |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    return type(config).from_dict(values)


def _layer_state(layer: RoutedLayer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in layer.state_dict().items() if not is_routing(name)}


def _module(layer: RoutedLayer, name: str) -> Module:
    return "mlp" if _owner(layer, name) == "mlp" else "attn"


def _owner(layer: RoutedLayer, name: str) -> str:
    """Name the module that a parameter belongs to: `attn`, `mlp`, `both` or empty."""
    child = name.split(".")[0]
    family = layer.family
    before_attn, before_mlp = (
        next((name for name in names if has(layer, name)), "")
        for names in (family.attn_norm, family.mlp_norm)
    )
    attn = child in (family.attn, before_attn, *family.attn_after)
    mlp = child in (family.mlp, before_mlp, *family.mlp_after)
    return "both" if attn and mlp else "attn" if attn else "mlp" if mlp else ""
