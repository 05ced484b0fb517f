"""Families that vLLM runs with skipping: each has Llama's layer, except for its attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skipgpt.model.families.table import MERGED_PREFIX

ARCHITECTURES = {
    "llama": "SkipGPTLlamaForCausalLM",
    "mistral": "SkipGPTMistralForCausalLM",
    "qwen2": "SkipGPTQwen2ForCausalLM",
    "qwen3": "SkipGPTQwen3ForCausalLM",
}
"""Architecture in the config of a merged export, by model type of the base."""


def unsupported(family: str, router: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Name what the plug-in does not support in a checkpoint; None where it supports all.

    `router` has the fields of its `RouterConfig`, and `config` those of the base, or of the merged
    export.
    """
    kinds = set(config.get("layer_types") or ["full_attention"])
    checks = (
        (family not in ARCHITECTURES, f"a model of the family {family}"),
        (router.get("kv", "dense") != "dense", f"routers with kv: {router.get('kv')}"),
        (router.get("decides") == "sequence", "routers that decide for a whole sequence"),
        (
            len(kinds) > 1 and family.startswith("qwen"),
            f"layers of kinds {', '.join(sorted(kinds))}",
        ),
        (bool(config.get("quantization_config")), "quantised weights"),
    )
    return next((what for found, what in checks if found), None)


def dense_layer(vllm_config: Any, prefix: str) -> Any:
    """Build vLLM's layer of the family, by the name `prefix`, whose parts a routed layer reuses."""
    config = vllm_config.model_config.hf_config
    family = config.model_type.removeprefix(MERGED_PREFIX)
    if family not in ("qwen2", "qwen3"):
        from vllm.model_executor.models.llama import LlamaDecoderLayer

        return LlamaDecoderLayer(vllm_config=vllm_config, prefix=prefix)
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer

    layer_class = Qwen2DecoderLayer if family == "qwen2" else Qwen3DecoderLayer
    return layer_class(
        config=config,
        cache_config=vllm_config.cache_config,
        quant_config=vllm_config.quant_config,
        prefix=prefix,
    )
