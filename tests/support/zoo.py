"""Tiny models of every family in the table, and of its variants: `falcon/alibi` is one of `falcon`.

Each has settings in which all that is peculiar to the family shows in its logits.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

SMALL: dict[str, object] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Rows are 11 tokens: windows of 5 cut, and the layers differ.
_MIX = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_USE_MIX = {"use_sliding_window": True, **_MIX}
_BIAS = {"attention_bias": True, "mlp_bias": True}
_PARTIAL = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }
}
# Scaled rotary embeddings whose original context is shorter than the rows.
_LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
}
_GPT2_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 48}
_NO_DROP = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_DEEP_MOE = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}
_FALCON = {"ffn_hidden_size": 48, "bias": True, "head_dim": ...}  # there a property
_NEOX = {**_PARTIAL, "attention_bias": True}
_STABLE = {**_PARTIAL, "use_qkv_bias": True, "qk_layernorm": True}
_GEMMA2 = {
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 5,
    "attention_bias": True,
    **_MIX,
}

ZOO: dict[str, dict[str, object]] = {
    "llama": {},  # as the authors' models
    "llama/biased-llama3-rope": {**_LLAMA3, **_BIAS},
    "mistral": {"sliding_window": 5},
    "ministral": _MIX,
    "ministral3": {
        "sliding_window": 5,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4,
            "max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,  # scales queries by their absolute position
        },
    },
    "qwen2": _USE_MIX,
    "qwen3": {**_USE_MIX, "attention_bias": True},
    "smollm3": {**_USE_MIX, **_BIAS, "no_rope_layers": [1, 0, 1]},
    "granite": {
        **_BIAS,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.7,
    },
    "starcoder2": {"sliding_window": 5, "use_bias": True},
    "stablelm": {**_STABLE, "use_parallel_residual": False},
    "stablelm/parallel": {**_STABLE, "use_parallel_residual": True},
    "olmo": {"clip_qkv": 0.3, "attention_bias": True},
    "olmo2": {"attention_bias": True},
    "olmo3": {**_MIX, "attention_bias": True},
    "olmoe": {
        "clip_qkv": 0.3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "attention_bias": True,
    },
    "helium": _BIAS,
    "seed_oss": {
        **_BIAS,
        "attention_out_bias": True,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
    },
    "arcee": _BIAS,
    "gemma": {"attention_bias": True},
    "gemma2": _GEMMA2,
    "gemma3_text": {**_MIX, "query_pre_attn_scalar": 5, "attention_bias": True},
    "glm": {**_PARTIAL, "attention_bias": True},
    "glm4": {**_PARTIAL, "attention_bias": True},
    "phi": {**_PARTIAL, "qk_layernorm": True},
    "phi3": {**_PARTIAL, "sliding_window": 5},
    "gpt_neox": {**_NEOX, "use_parallel_residual": True},
    "gpt_neox/sequential": {**_NEOX, "use_parallel_residual": False},
    "gpt2": {**_GPT2_SIZES, **_NO_DROP, "scale_attn_by_inverse_layer_idx": True},
    "gpt2/upcast": {**_GPT2_SIZES, **_NO_DROP, "reorder_and_upcast_attn": True},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {**_FALCON, "multi_query": True, "parallel_attn": True},
    "falcon/sequential": {**_FALCON, "multi_query": True, "parallel_attn": False},
    "falcon/new": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon/new-one-norm": {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "falcon/alibi": {
        **_FALCON,
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
        "num_kv_heads": 4,
    },
    "falcon/alibi-parallel": {**_FALCON, "multi_query": True, "parallel_attn": True, "alibi": True},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.5, "attention_bias": True},
    "cohere2": {**_MIX, "logit_scale": 0.5, "attention_bias": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "qwen2_moe": {
        **_USE_MIX,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "norm_topk_prob": True,
    },
    "qwen2_moe/mixed": {
        **_USE_MIX,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "attention_bias": True,
    },
    "gpt_oss": {
        **_MIX,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4,
        },
    },
    "deepseek_v3": {
        **_DEEP_MOE,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 12,
        "qk_rope_head_dim": 4,
        "head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "attention_bias": True,
    },
    "deepseek_v3/no-q-lora": {
        **_DEEP_MOE,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 4,
        "head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "rope_interleave": False,
    },
    "exaone4": _MIX,  # full-attention layers have no rotary embedding
    "apertus": {**_LLAMA3, "attention_bias": True},
    "nemotron": {**_PARTIAL, **_BIAS},
    "ernie4_5": {"use_bias": True},
    "hunyuan_v1_dense": {"attention_bias": True},
    "bitnet": {"attention_bias": True},
    "cwm": {**_LLAMA3, **_MIX, "mlp_bias": True},
    "jais2": _BIAS,
    "nanochat": {"final_logit_softcapping": 5.0, "attention_bias": True},
    "phimoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.4,  # with the usual 0.01 every expert's weight is 1
    },
    "persimmon": {**_PARTIAL, "qk_layernorm": True},
    "gpt_bigcode": {**_GPT2_SIZES, **_NO_DROP, "multi_query": True, "num_key_value_heads": 1},
    "gpt_bigcode/multi-head": {
        **_GPT2_SIZES,
        **_NO_DROP,
        "multi_query": False,
        "num_key_value_heads": 4,
    },
    "dots1": {**_DEEP_MOE, **_MIX, "attention_bias": True},
    "vaultgemma": _GEMMA2,
    "mellum": {
        **_MIX,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "attention_bias": True,
    },
}

# Bloom and GPT-OSS have nothing else. Of the other two, transformers 5.16 takes sdpa by itself and
# then leaves out the soft cap.
EAGER_ONLY = frozenset({"bloom", "gpt_oss", "gemma2", "vaultgemma"})


def family_name(name: str) -> str:
    """The row of a variant: `falcon` of `falcon/alibi`."""
    return name.split("/")[0]


def config(name: str, **changes: object) -> PreTrainedConfig:
    """The config of a tiny model; a value of `...` leaves its keyword out."""
    keywords = SMALL | ZOO[name] | changes
    given = {key: value for key, value in keywords.items() if value is not ...}
    return AutoConfig.for_model(family_name(name), **given)


def build(name: str, seed: int = 0, attention: str | None = None, **changes: object) -> nn.Module:
    """A random model as transformers draws it, float32, in evaluation mode."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes longer than a model
    attention = attention or ("eager" if family_name(name) in EAGER_ONLY else None)
    extra = {"attn_implementation": attention} if attention else {}
    made = AutoModelForCausalLM.from_config(config(name, **changes), dtype=torch.float32, **extra)
    return made.eval()
