"""LoRA, through PEFT.

An adapter belongs to one module, but a weight may have several names: a tied head's weight is the
input embedding's, too. Unmerged, LoRA on one leaves the other alone; merged into the weight it
would change both. So merging first gives each name a tensor of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from skipgpt.config import ALL_LINEAR, QUERY_VALUE_GATE, LoraStage
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.families.linear import has_widths
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.families.table import family_of
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import register_sparsity_hooks, routed_layers

logger = logging.getLogger("skipgpt")


def with_lora(model: Any, stage: LoraStage) -> Any:
    """Add a LoRA adapter to a model through PEFT; unchanged if it has one.

    Raises:
        ConfigError: a target is no linear layer of this model, or PEFT cannot adapt it.
    """
    if hasattr(model, "peft_config"):
        return model
    stage = with_own_targets(model, stage)
    check_targets(model, stage)
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=target_names(model, stage),
        task_type="CAUSAL_LM",
    )
    with _without_warnings():
        try:
            wrapped = get_peft_model(model, adapter)
        except ValueError as error:
            refusal, expected = f"PEFT's refusal: {error}", "targets that it adapts in this model"
            raise _bad_targets(model, refusal, expected) from error
    if adapted := _adapted_of_several_names(wrapped):
        logger.warning(
            "LoRA on %s, whose weight has other names in this model: merging it, as eval, generate "
            "and exports do, unties them and costs %s parameters more",
            ", ".join(adapted),
            f"{sum(copies(wrapped).values()):,}",
        )
    if routed_layers(model):
        routing_state(model).lora = True
        # PEFT calls the `forward` of the wrapped model directly, which bypasses its hooks.
        register_sparsity_hooks(wrapped, routing_state(model))
    return wrapped


def with_saved_lora(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Load the adapter that PEFT wrote into a folder onto a model with routers."""
    from peft import PeftModel

    routing_state(model).lora = True
    with _without_warnings():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def merge_lora(model: Any) -> Any:
    """Fold the adapter into the weights and return the model without it; its logits do not change.

    Where an adapted weight has several names, each gets a tensor of its own first, and the config
    says that nothing is tied.

    Args:
        model: wrapped by PEFT, its weights not quantised.

    Raises:
        UnsupportedModelError: one module has two names, so that its weight cannot be untied.

    Example:
        model = merge_lora(with_lora(model, stage))
    """
    if adapted := _adapted_of_several_names(model):
        more, names = _untie(model), ", ".join(adapted)
        logger.info("merging LoRA on %s unties its weight: %s parameters more", names, f"{more:,}")
    return model.merge_and_unload()


def copies(model: nn.Module) -> dict[str, int]:
    """Return the aliases of shared parameters, each with the size of the parameter.

    Example:
        >>> embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        >>> head.weight = embedding.weight
        >>> copies(nn.ModuleDict({"embed": embedding, "head": head}))
        {'head.weight': 15}
    """
    first = {name for name, _ in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: parameter.numel() for name, parameter in every if name not in first}


def _untie(model: Any) -> int:
    """Give each name of a parameter a tensor of its own; returns how many numbers that adds."""
    found = copies(model)
    for name in found:
        path, _, last = name.rpartition(".")
        parameter = model.get_parameter(name)
        own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        setattr(model.get_submodule(path), last, own)
    if left := copies(model):
        raise UnsupportedModelError(
            "merging LoRA into weights of several names",
            got=f"modules that are one object under two names: {', '.join(sorted(left))}",
            expected="modules of their own that share a tensor, as a tied head does",
            todo="leave LoRA unmerged: skipgpt.load(…, merge=False)",
        )
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    return sum(found.values())


def _adapted_of_several_names(model: nn.Module) -> list[str]:
    """Adapted modules, by the last part of their name, that share their weight with another."""
    shared = {id(model.get_parameter(name)) for name in copies(model)}
    return sorted(
        {
            name.removesuffix(".base_layer").rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if name.endswith(".base_layer")
            and any(id(parameter) in shared for parameter in module.parameters())
        }
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress PEFT's warning that merging may go wrong; `merge_lora` unties first.

    And that it sets `fan_in_fan_out` by itself, which depends on the class of each layer.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")
        yield


@contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Switch the LoRA adapter off inside the block; nothing happens where there is none.

    PEFT makes every adapter trainable when it switches it on again; here each parameter stays as
    trainable as it was.

    Example:
        with without_lora(model), skipgpt.execution(model, "dense"):
            base_logits = model(ids).logits
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def with_own_targets(model: nn.Module, stage: LoraStage) -> LoraStage:
    """Return the stage with the names that `query-value-gate` has in this model; others stay.

    Example:
        >>> with_own_targets(load_base("openai-community/gpt2")[0], LoraStage()).targets
        ('c_attn', 'c_fc')
    """
    if stage.targets != QUERY_VALUE_GATE:
        return stage
    return dataclasses.replace(stage, targets=_own_targets(model))


def check_targets(model: nn.Module, stage: LoraStage) -> None:
    """Raise a ConfigError for names that no linear layer has, before hours of training."""
    if stage.targets in (ALL_LINEAR, QUERY_VALUE_GATE):
        return
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if (has_widths(module) or isinstance(module, nn.Embedding)) and not is_routing(f"{name}.")
    }
    if unknown := [target for target in stage.targets if target not in names]:
        raise _bad_targets(
            model,
            f"targets that are no linear layers of this model: {', '.join(unknown)}",
            f"some of {', '.join(_linear_names(model))}, or all-linear",
        )


def _bad_targets(model: nn.Module, got: str, expected: str) -> ConfigError:
    return ConfigError(
        "planning stage lora",
        got=got,
        expected=expected,
        todo=f"set them with --set lora_stage.targets={','.join(_own_targets(model))}",
    )


def _own_targets(model: nn.Module) -> tuple[str, ...]:
    family = family_of(model)
    found = [name for layer in family.layers_of(model) for name in family.query_value_gate(layer)]
    return tuple(dict.fromkeys(found))


def _linear_names(model: nn.Module) -> list[str]:
    """Names of the linear layers inside decoder layers, in their order."""
    found = [
        name.rsplit(".", 1)[-1]
        for layer in family_of(model).layers_of(model)
        for name, module in layer.named_modules()
        if has_widths(module) and not is_routing(f"{name}.")
    ]
    return list(dict.fromkeys(found))


def target_names(model: nn.Module, stage: LoraStage) -> list[str]:
    """The linear layers that a stage adapts, as PEFT takes them: ends of module names.

    Routers and stand-ins are never among them, nor are experts that share one tensor.
    """
    if stage.targets != ALL_LINEAR:
        return list(stage.targets)
    names, family = set(), family_of(model)
    for layer in family.layers_of(model):
        for part in (family.attn, family.mlp)[: 2 if family.gate else 1]:
            names |= {
                f"{part}.{name}"
                for name, module in getattr(layer, part).named_modules()
                if name and has_widths(module) and hasattr(module, "weight")
            }
    return sorted(names)
