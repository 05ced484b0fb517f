"""What differs between decoder families, as the fields of one table row.

A row names the parts of a decoder layer in the order the data moves. The parts themselves are
always the family's own modules, called as transformers calls them; see `modules.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from skipgpt.model.families.linear import has_widths

Names = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One row. Names are those of children of the decoder layer, or of its attention.

    `docs/extending.md` explains each field, and how to find its value.
    """

    model_type: str
    prefix: str
    module: str = ""
    layer: str = "DecoderLayer"
    causal_lm: str = "ForCausalLM"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_norm: Names = ("input_layernorm",)
    mlp_norm: Names = ("post_attention_layernorm",)
    attn_after: Names = ()
    mlp_after: Names = ()
    scale: str = ""
    parallel: bool | str = False
    sums_first: bool = False
    query: Names = ("q_proj",)
    key_value: Names = ("k_proj", "v_proj")
    fused: str = ""
    query_first: bool | Literal["multi-query"] = False
    output: str = "o_proj"
    gate: Names = ("gate_proj", "gate_up_proj", "up_proj", "c_fc", "fc1", "dense_h_to_4h")
    cache: str = "past_key_values"
    adds_residual: bool = False
    returns_tuple: bool = False
    requires: tuple[tuple[str, object], ...] = ()
    unread: Names = ()
    since: str = ""

    @property
    def layout(self) -> str:
        """How norms, modules and residual adds follow each other, in words."""
        fused = ", fused" if self.fused else ""
        if self.parallel:
            return ("parallel" if self.parallel is True else "parallel or sequential") + fused
        after = [n for n in self.attn_after if "norm" in n]
        norms = (
            "sandwich norms" if after and self.attn_norm else "post-norm" if after else "pre-norm"
        )
        return f"sequential, {norms}{fused}"

    @property
    def skips(self) -> str:
        """What is not computed for a skipped token."""
        always = self.query_first is True or not self.fused
        queries = "Q, " if always else "Q if multi-query, " if self.query_first else ""
        return f"{queries}attention, O; MLP"

    @property
    def layer_class(self) -> type[nn.Module]:
        """The decoder layer's class; imports transformers."""
        found: type[nn.Module] = getattr(self._load(), self.prefix + self.layer)
        return found

    def layers_of(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers of a model, in order, with routers or without."""
        return [module for module in model.modules() if isinstance(module, self.layer_class)]

    @property
    def model_class(self) -> Any:
        """The class with the language-model head; imports transformers."""
        return getattr(self._load(), self.prefix + self.causal_lm)

    def is_parallel(self, layer: nn.Module) -> bool:
        """Whether this layer's MLP reads what its attention reads."""
        if isinstance(self.parallel, bool):
            return self.parallel
        return bool(_at(layer, self.parallel))

    def share_of_experts(self, layer: nn.Module) -> float:
        """The share of its experts that a token runs; 1 for a layer that has none."""
        if not has(getattr(layer, self.mlp), "experts"):
            return 1.0
        config = getattr(layer, self.attn).config
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        total: int = next(getattr(config, name) for name in names if has(config, name))
        return float(config.num_experts_per_tok / total)

    def missing_parts(self, layer: nn.Module) -> list[str]:
        """What the row names and the layer lacks, as paths."""
        attn = getattr(layer, self.attn, None)
        inner = [self.fused] if self.fused else [self.query, *self.key_value]
        wanted: list[tuple[Any, str, str | Names]] = [
            (layer, "", self.attn),
            (layer, "", self.mlp),
            *((layer, "", norm) for norm in (self.attn_norm, self.mlp_norm) if norm),
            *((layer, "", name) for name in (*self.attn_after, *self.mlp_after)),
            *((attn, f"{self.attn}.", name) for name in (*inner, self.output)),
        ]
        return [
            at + (name if isinstance(name, str) else " or ".join(name))
            for owner, at, name in wanted
            if not any(has(owner, each) for each in ((name,) if isinstance(name, str) else name))
        ]

    def query_value_gate(self, layer: nn.Module) -> list[str]:
        """Names of the projections that make queries and values, and of the MLP's gate."""
        attn = getattr(layer, self.attn)
        inner = [self.fused] if self.fused else [*self.query, self.key_value[-1]]
        in_mlp = {
            name.rsplit(".", 1)[-1]
            for name, module in getattr(layer, self.mlp).named_modules()
            if has_widths(module)
        }
        gate = [name for name in self.gate if name in in_mlp]
        return [*(name for name in inner if has(attn, name)), *gate[:1]]

    def shapeless_parts(self, layer: nn.Module) -> list[str]:
        """Projections that were replaced by something that does not tell its width, as paths."""
        attn = getattr(layer, self.attn)
        names = [n for n in (*self.query, *self.key_value, self.fused, self.output) if n]
        return [
            f"{self.attn}.{name}"
            for name in names
            if has(attn, name) and not has_widths(getattr(attn, name))
        ]

    def unmet(self, layer: nn.Module) -> str:
        """The first setting of the layer that the row does not cover, in words; else empty."""
        for path, value in self.requires:
            found = _at(layer, path)
            if found != value:
                found = type(found).__name__ if isinstance(found, nn.Module) else repr(found)
                return f"{path} = {found} where the row needs {value!r}"
        return ""

    def _load(self) -> Any:
        name = self.module or f"{self.model_type}.modeling_{self.model_type}"
        return importlib.import_module(f"transformers.models.{name}")


def _at(layer: nn.Module, path: str) -> Any:
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def has(owner: Any, name: str) -> bool:
    """Whether the attribute exists and is not None (parallel StableLM has an empty norm)."""
    return getattr(owner, name, None) is not None
