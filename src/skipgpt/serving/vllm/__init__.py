"""A plug-in with which vLLM serves a merged export and skips what its routers skip.

    skipgpt export out/llama-25 --merged --out out/llama-25-merged
    vllm serve out/llama-25-merged

vLLM finds `register` through the entry point group `vllm.general_plugins` and calls it in every
process it starts. The forward is in `layer.py`, the sparsity of each request in `budget.py`.

Nothing here is imported unless vLLM runs or a caller asks for it.

    model.py          the model class that vLLM builds
    layer.py          the routed layer
    attention.py      queries of some tokens, keys and values of all
    families.py       which checkpoints are supported
    engine_config.py  settings that a merged export needs
    budget.py         the sparsity of each request
    requests.py       checks requests, and changes them
    http.py           what vLLM's server takes beside its own fields
    metrics.py        counters
    launch.py         runs vLLM's server
"""

from __future__ import annotations

from skipgpt.errors import MissingExtraError
from skipgpt.serving.vllm.families import ARCHITECTURES


def register() -> None:
    """Register the architectures of merged exports in vLLM; calling it again changes nothing.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    except ImportError as error:
        raise MissingExtraError("vllm", "vllm", "serving with vLLM") from error
    from skipgpt.model.auto import register as register_configs
    from skipgpt.serving.vllm.engine_config import EngineConfigHook
    from skipgpt.serving.vllm.requests import watch_requests

    register_configs(*ARCHITECTURES)
    for architecture in ARCHITECTURES.values():
        ModelRegistry.register_model(architecture, "skipgpt.serving.vllm.model:SkipGPTForCausalLM")
        MODELS_CONFIG_MAP[architecture] = EngineConfigHook
    watch_requests()
