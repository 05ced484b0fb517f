"""The table of model families: one row each, no code. What the fields mean: `docs/extending.md`.

A family that is not a row is refused by `family_of`, which says what is missing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from skipgpt.errors import UnsupportedModelError
from skipgpt.model.families.family import Family

OLDEST, NEWEST = "5.16.1", "5.23.0"
"""The transformers releases that the tests of every row ran on."""

MERGED_PREFIX = "skipgpt_"
"""Prefix of the model type of a merged export, as in `skipgpt_llama`."""

_GEMMA: dict[str, Any] = {
    "mlp_norm": ("pre_feedforward_layernorm",),
    "attn_after": ("post_attention_layernorm",),
    "mlp_after": ("post_feedforward_layernorm",),
}
_OLMO: dict[str, Any] = {
    "attn_norm": (),
    "mlp_norm": (),
    "attn_after": ("post_attention_layernorm",),
    "mlp_after": ("post_feedforward_layernorm",),
}
_GPT2: dict[str, Any] = {
    "layer": "Block",
    "attn": "attn",
    "attn_norm": ("ln_1",),
    "mlp_norm": ("ln_2",),
    "fused": "c_attn",
    "output": "c_proj",
    "requires": (("crossattention", None),),
    "unread": (r"\.attn\.(masked_)?bias$",),  # causal masks, which old releases stored
}
# PEFT takes gate_proj, up_proj and down_proj for the experts', which share one tensor.
_NO_LORA_ON_MLP: dict[str, Any] = {"gate": ()}
_ONE_NORM: dict[str, Any] = {"parallel": True, "mlp_norm": ("input_layernorm",)}
_PRE_NORM = [
    Family("arcee", "Arcee"),
    Family("bitnet", "BitNet"),
    Family("cwm", "Cwm"),
    Family("ernie4_5", "Ernie4_5"),
    Family("gemma", "Gemma"),
    Family("glm", "Glm"),
    Family("helium", "Helium"),
    Family("hunyuan_v1_dense", "HunYuanDenseV1"),
    Family("jais2", "Jais2"),
    Family("llama", "Llama"),
    Family("ministral", "Ministral"),
    Family("ministral3", "Ministral3"),
    Family("mistral", "Mistral"),
    Family("nanochat", "NanoChat"),
    Family("nemotron", "Nemotron"),
    Family("olmo", "Olmo"),
    Family("qwen2", "Qwen2"),
    Family("qwen3", "Qwen3"),
    Family("seed_oss", "SeedOss"),
    Family("smollm3", "SmolLM3"),
    Family("starcoder2", "Starcoder2"),
    Family("vaultgemma", "VaultGemma", mlp_norm=("pre_feedforward_layernorm",)),
    Family(
        "apertus",
        "Apertus",
        attn_norm=("attention_layernorm",),
        mlp_norm=("feedforward_layernorm",),
    ),
    Family("granite", "Granite", scale="residual_multiplier"),
]
_POST_NORM = [
    Family("exaone4", "Exaone4", **_OLMO),
    Family("gemma2", "Gemma2", **_GEMMA),
    Family("gemma3_text", "Gemma3", "gemma3.modeling_gemma3", **_GEMMA),
    Family(
        "glm4", "Glm4", attn_after=("post_self_attn_layernorm",), mlp_after=("post_mlp_layernorm",)
    ),
    Family("olmo2", "Olmo2", **_OLMO),
    Family("olmo3", "Olmo3", **_OLMO),
]
_FUSED = [
    Family(
        "phi3",
        "Phi3",
        attn_after=("resid_attn_dropout",),
        mlp_after=("resid_mlp_dropout",),
        fused="qkv_proj",
        query_first=True,
    ),
    Family("gpt2", "GPT2", causal_lm="LMHeadModel", query_first=True, **_GPT2),
    Family(
        "persimmon", "Persimmon", mlp_after=("dropout",), fused="query_key_value", output="dense"
    ),
    Family("gpt_bigcode", "GPTBigCode", cache="layer_past", query_first="multi-query", **_GPT2),
    Family(
        "bloom",
        "Bloom",
        layer="Block",
        attn="self_attention",
        fused="query_key_value",
        output="dense",
        cache="layer_past",
        adds_residual=True,
        returns_tuple=True,
        requires=(("apply_residual_connection_post_layernorm", False),),
    ),
]
_PARALLEL = [
    Family("cohere", "Cohere", **_ONE_NORM),
    Family("cohere2", "Cohere2", **_ONE_NORM),
    Family(
        "phi",
        "Phi",
        sums_first=True,
        attn_after=("resid_dropout",),
        mlp_after=("resid_dropout",),
        output="dense",
        **_ONE_NORM,
    ),
    Family(
        "stablelm",
        "StableLm",
        mlp_norm=("post_attention_layernorm", "input_layernorm"),
        mlp_after=("dropout",),
        parallel="use_parallel_residual",
    ),
    Family(
        "gpt_neox",
        "GPTNeoX",
        layer="Layer",
        attn="attention",
        attn_after=("post_attention_dropout",),
        mlp_after=("post_mlp_dropout",),
        parallel="use_parallel_residual",
        sums_first=True,
        fused="query_key_value",
        output="dense",
        cache="layer_past",
    ),
    Family(
        "falcon",
        "Falcon",
        attn="self_attention",
        attn_norm=("ln_attn", "input_layernorm"),
        mlp_norm=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
        parallel="config.parallel_attn",
        sums_first=True,
        fused="query_key_value",
        query_first="multi-query",
        output="dense",
        cache="layer_past",
        returns_tuple=True,
        requires=(("config.hidden_dropout", 0.0),),
    ),
]
_EXPERTS = [
    Family("dots1", "Dots1", **_NO_LORA_ON_MLP),
    Family("gpt_oss", "GptOss"),
    Family("mellum", "Mellum", unread=(r"^mtp\.",), **_NO_LORA_ON_MLP),  # predicts further tokens
    Family("mixtral", "Mixtral"),
    Family("olmoe", "Olmoe"),
    Family("phimoe", "Phimoe"),
    Family("qwen2_moe", "Qwen2Moe"),
    Family("qwen3_moe", "Qwen3Moe"),
    Family(
        "deepseek_v3",
        "DeepseekV3",
        query=("q_proj", "q_a_proj", "q_b_proj"),
        key_value=("kv_a_proj_with_mqa",),
        **_NO_LORA_ON_MLP,
    ),
]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (*_PRE_NORM, *_POST_NORM, *_FUSED, *_PARALLEL, *_EXPERTS)
}


def family_of(model: nn.Module) -> Family:
    """The table row of a model's family.

    Raises:
        UnsupportedModelError: no row for its model type, its layers lack a part that the row
            names, or it has a setting that the row does not cover.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    model_type = model_type.removeprefix(MERGED_PREFIX)
    doing = f"adding routers to a model of type {model_type!r}"
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            doing,
            got="a family without a row in model/families/table.py",
            expected="one of " + ", ".join(sorted(FAMILIES)),
            todo="see docs/extending.md for what a row needs",
        )
    family = FAMILIES[model_type]
    layers = family.layers_of(model)
    if not layers:
        raise UnsupportedModelError(
            doing,
            got=f"no {family.layer_class.__name__} in it",
            expected="a decoder with a language-model head, as AutoModelForCausalLM loads it",
        )
    for layer in layers:
        if missing := family.missing_parts(layer):
            raise UnsupportedModelError(
                doing,
                got=f"layers without {', '.join(missing)}",
                expected="the parts that the family's row names",
                todo="see docs/extending.md for what a row needs",
            )
        if shapeless := family.shapeless_parts(layer):
            raise UnsupportedModelError(
                doing,
                got=f"layers whose {', '.join(shapeless)} has no out_features",
                expected="linear layers, of torch, PEFT or a quantiser",
            )
        if unmet := family.unmet(layer):
            raise UnsupportedModelError(
                doing,
                got=unmet,
                expected="what the family's row was written for",
                todo="see docs/extending.md for what a row needs",
            )
    return family
