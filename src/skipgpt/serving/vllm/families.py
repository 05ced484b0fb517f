"""The families that vLLM runs with skipping: each has the layer of Llama, but for its attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skipgpt.model.families import MERGED_PREFIX

ARCHITECTURES = {
    "llama": "SkipGPTLlamaForCausalLM",
    "mistral": "SkipGPTMistralForCausalLM",
    "qwen2": "SkipGPTQwen2ForCausalLM",
    "qwen3": "SkipGPTQwen3ForCausalLM",
}
"""By model type of the base, what a merged export names in its config."""


def unsupported(family: str, router: Mapping[str, Any]) -> str | None:
    """What the plug-in cannot run of a checkpoint; None where it can.

    Args:
        family: model type of the base.
        router: fields of its `RouterConfig`.
    """
    if family not in ARCHITECTURES:
        return f"a model of the family {family}"
    if router.get("kv", "dense") != "dense":
        return f"routers with kv: {router['kv']}"
    if router.get("decides") == "sequence":
        return "routers that decide for a whole sequence"
    return None


def dense_layer(vllm_config: Any, prefix: str) -> Any:
    """The layer that vLLM has for the family, which a routed layer takes apart.

    Args:
        vllm_config: of the engine.
        prefix: the layer's name, as in `model.layers.3`.
    """
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
