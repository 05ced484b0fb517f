"""Putting routers into a model and taking them out again, without touching a base weight."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from skipgpt.config import RouterConfig
from skipgpt.errors import ConfigError
from skipgpt.model.attention import custom
from skipgpt.model.attention.split import blanks
from skipgpt.model.families.parameter_names import ROUTING_PARTS, kind_of
from skipgpt.model.families.table import family_of
from skipgpt.model.forward_hooks import begin_forward, give_back_sparsity, take_sparsity
from skipgpt.model.layer import routed_class
from skipgpt.model.loading.bitsandbytes import make_safe
from skipgpt.model.modules import attention_arguments
from skipgpt.model.packing_cost import PackingCost
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.state import RoutingState
from skipgpt.routing.decision import MODULES, Site
from skipgpt.routing.router import Router, build_router
from skipgpt.routing.stand_in import StandIn

_ADDED = RoutedLayer.__annotations__.keys() - {"positional"}
"""Attributes that a routed layer has beside those of its family's layer."""

_HOOKS = ("take_hook", "back_hook", "begin_hook")

M = TypeVar("M", bound=nn.Module)


def add_routers(model: M, config: RouterConfig | None = None) -> M:
    """Give every decoder layer two routers, in place.

    The layers change class; no base parameter is renamed, copied or changed. Routers are float32
    whatever the base is, on the device of their layer. Until they are trained and calibrated,
    decisions follow the threshold 0.

    Args:
        model: a causal language model of a family in `skipgpt families`.
        config: what the routers are.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: the family is not supported.
        ConfigError: the model has routers already, or stand-ins would be wider than it.

    Example:
        model = AutoModelForCausalLM.from_pretrained(name)
        skipgpt.add_routers(model, skipgpt.RouterConfig(normalize=True))
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if routed_layers(model):
        raise ConfigError(
            "adding routers", got="a model that has routers", todo="call remove_routers first"
        )
    family = family_of(model)
    width = hidden_size(model)
    config = (config or RouterConfig()).resolved(width)
    rank = int(config.stand_in)
    if rank > width:
        raise ConfigError(
            "reading stand_in", got=str(rank), expected=f"at most {width}, the width of the model"
        )
    make_safe(model, "adding routers to a quantised model")
    ALL_ATTENTION_FUNCTIONS.register(custom.NAME, custom.attend)
    state = RoutingState(config)
    layer_class: Any = family.layer_class
    layers: list[Any] = [module for module in model.modules() if type(module) is layer_class]
    for index, layer in enumerate(layers):
        device = next(layer.parameters()).device
        layer.__class__ = routed_class(layer_class)
        layer.index, layer.family, layer.routing = index, family, state
        layer.attn_arguments = attention_arguments(getattr(layer, family.attn))
        layer.attn_blanks = blanks(layer)
        layer.packing = PackingCost(layer)
        for module in MODULES:
            router = build_router(state.config, width).to(device, torch.float32)
            setattr(layer, f"{module}_router", router)
            stand_in = StandIn(width, rank).to(device, torch.float32) if rank else None
            setattr(layer, f"{module}_stand_in", stand_in)
    decoder = _decoder(model, layers[0])
    names = tuple(inspect.signature(type(decoder).forward).parameters)[1:]
    begin = functools.partial(begin_forward, state, len(layers), names)
    # Some families pass unknown arguments on to the decoder, some do not.
    for module in {model, decoder}:
        register_sparsity_hooks(module, state)
    decoder.begin_hook = decoder.register_forward_pre_hook(begin, with_kwargs=True)
    _rename_unsplit(model, layer_class.__name__, routed_class(layer_class).__name__)
    return model


def register_sparsity_hooks(module: Any, state: RoutingState) -> None:
    """Let a forward of this module take `sparsity`."""
    take, back = (functools.partial(f, state) for f in (take_sparsity, give_back_sparsity))
    module.take_hook = module.register_forward_pre_hook(take, with_kwargs=True)
    module.back_hook = module.register_forward_hook(back, always_call=True)


def remove_routers(model: M) -> M:
    """Undo `add_routers`: the model is the base model again (with LoRA, where there is one)."""
    for layer in routed_layers(model):
        layer.__class__ = layer.family.layer_class  # type: ignore[assignment]
        for name in _ADDED:
            delattr(layer, name)
        name = type(layer).__name__
        _rename_unsplit(model, f"Routed{name}", name)
    for module in model.modules():
        for name in _HOOKS:
            if hook := module.__dict__.pop(name, None):
                hook.remove()
    return model


def routed_layers(model: nn.Module) -> list[RoutedLayer]:
    """The routed layers of a model, in order; empty if it has no routers."""
    return [module for module in model.modules() if isinstance(module, RoutedLayer)]


def routers(model: nn.Module) -> dict[Site, Router]:
    """The routers of a model by site."""
    return _by_site(model, "router")


def stand_ins(model: nn.Module) -> dict[Site, StandIn]:
    """The stand-ins of a model by site; empty where skipped modules leave only the residual."""
    found = _by_site(model, "stand_in")
    return {site: stand_in for site, stand_in in found.items() if stand_in is not None}


def _by_site(model: nn.Module, part: str) -> dict[Site, Any]:
    return {
        Site(layer.index, module): getattr(layer, f"{module}_{part}")
        for layer in routed_layers(model)
        for module in MODULES
    }


def drop_stand_ins(model: nn.Module) -> None:
    """Take the stand-ins out, in place: skipped modules leave only the residual again."""
    for layer in routed_layers(model):
        layer.attn_stand_in = layer.mlp_stand_in = None
        layer.routing.config = dataclasses.replace(layer.routing.config, stand_in=0)


def router_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Routers and stand-ins under the keys of a checkpoint, `layers.3.attn_router.weight`."""
    return {
        f"layers.{layer.index}.{part}.{name}": tensor
        for layer in routed_layers(model)
        for part in ROUTING_PARTS
        if (module := getattr(layer, part)) is not None
        for name, tensor in module.named_parameters()
    }


def train_only(model: nn.Module, *kinds: str) -> list[nn.Parameter]:
    """Freeze everything but the named kinds: `router`, `stand_in`, `lora`; returns what trains."""
    trained = []
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        parameter.requires_grad_(kind in kinds)
        if kind in kinds:
            trained.append(parameter)
    return trained


def hidden_size(model: nn.Module) -> int:
    """D, the width of the residual stream."""
    size: int = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    return size


def _decoder(model: nn.Module, layer: nn.Module) -> Any:
    """The module that runs the layers: it holds the list they are in."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and layer in m]
    return next(m for m in model.modules() if any(child in lists for child in m.children()))


def _rename_unsplit(model: nn.Module, old: str, new: str) -> None:
    """Rename a class in the sets of unsplit classes, which device maps look up by name."""
    for module in model.modules():
        names = getattr(module, "_no_split_modules", None)
        if names and old in names:
            module._no_split_modules = type(names)(new if n == old else n for n in names)
