"""What differs between decoder families, as one row of data each.

A row names the parts of a decoder layer that the routed layer has to call itself. Anything that
cannot be said in a row is not supported, and `family_of` says what is missing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        model_type: as in the model's config.
        module: the transformers module that defines the family.
        prefix: of its class names (`Llama` in `LlamaDecoderLayer`).
        attn_norm: name of the norm before attention.
        mlp_norm: name of the norm before the MLP.
        attn_post_norm: name of the norm between attention and the residual add, if any.
        mlp_post_norm: likewise for the MLP.
        qk_norm: whether `q_norm` and `k_norm` act on each head.
        attention_extras: what the attention function gets beyond mask and scale, by keyword:
            the attribute of the attention module, dotted where it lies deeper.
    """

    model_type: str
    module: str
    prefix: str
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    qk_norm: bool = False
    attention_extras: tuple[tuple[str, str], ...] = ()

    @property
    def layout(self) -> str:
        """How norms, modules and residual adds follow each other, in words."""
        return "sequential, sandwich norms" if self.attn_post_norm else "sequential, pre-norm"

    @property
    def skips(self) -> str:
        """What is not computed for a skipped token."""
        return "Q, attention, O; MLP"

    def load(self, suffix: str) -> Any:
        """A class or function of the family, `load("DecoderLayer")`; imports transformers."""
        module = importlib.import_module(f"transformers.models.{self.module}")
        return getattr(module, suffix if suffix.islower() else self.prefix + suffix)


VERIFIED = "5.23.0"
"""The transformers release that the tests of every row ran on."""

MERGED_PREFIX = "skipgpt_"
"""Starts the model type of a merged export, as in `skipgpt_llama`."""

_WINDOW = ("sliding_window", "sliding_window")
_GEMMA_NORMS: dict[str, Any] = {
    "mlp_norm": "pre_feedforward_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "llama.modeling_llama", "Llama"),
        Family(
            "mistral",
            "mistral.modeling_mistral",
            "Mistral",
            attention_extras=(("sliding_window", "config.sliding_window"),),
        ),
        Family("qwen2", "qwen2.modeling_qwen2", "Qwen2", attention_extras=(_WINDOW,)),
        Family("qwen3", "qwen3.modeling_qwen3", "Qwen3", qk_norm=True, attention_extras=(_WINDOW,)),
        Family(
            "gemma2",
            "gemma2.modeling_gemma2",
            "Gemma2",
            **_GEMMA_NORMS,
            attention_extras=(_WINDOW, ("softcap", "attn_logit_softcapping")),
        ),
        Family(
            "gemma3_text",
            "gemma3.modeling_gemma3",
            "Gemma3",
            **_GEMMA_NORMS,
            qk_norm=True,
            attention_extras=(_WINDOW,),
        ),
    )
}


def family_of(model: nn.Module) -> Family:
    """The row of a model.

    Raises:
        UnsupportedModelError: no row for its model type, or its layers lack a part that the row
            names (fused projections, say).
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    model_type = model_type.removeprefix(MERGED_PREFIX)
    doing = f"adding routers to a model of type {model_type!r}"
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            doing,
            got="a family without a row in model/families.py",
            expected="one of " + ", ".join(sorted(FAMILIES)),
            todo="see docs/extending.md for what a row needs",
        )
    family = FAMILIES[model_type]
    layer_class = family.load("DecoderLayer")
    layers = [module for module in model.modules() if isinstance(module, layer_class)]
    if not layers:
        raise UnsupportedModelError(
            doing,
            got="no " + layer_class.__name__ + " in it",
            expected="a decoder with a language-model head, as AutoModelForCausalLM loads it",
        )
    if missing := _missing_parts(family, layers[0]):
        raise UnsupportedModelError(
            doing,
            got=f"layers without {', '.join(missing)} (fused projections?)",
            expected="separate q_proj, k_proj, v_proj, o_proj and the norms of the family's row",
            todo="see docs/extending.md for what a row needs",
        )
    return family


def _missing_parts(family: Family, layer: nn.Module) -> list[str]:
    heads = ["q_norm", "k_norm"] if family.qk_norm else []
    names = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", *heads)]
    norms = (family.attn_norm, family.mlp_norm, family.attn_post_norm, family.mlp_post_norm)
    names += ["mlp", *filter(None, norms)]
    present = {name for name, _ in layer.named_modules()}
    return [name for name in names if name not in present]
