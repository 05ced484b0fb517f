"""Engine settings that a merged export needs, checked before the engine starts."""

from __future__ import annotations

import math
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from skipgpt.errors import ConfigError
from skipgpt.model.families.table import MERGED_PREFIX
from skipgpt.serving.vllm.families import unsupported

BUDGETS = "skipgpt.serving.vllm.budget:Budgets"
DENSE_ABOVE = "skipgpt_dense_above"
"""Key of `--additional-config`: steps that decode more requests than this run no router."""


class EngineConfigHook(VerifyAndUpdateConfig):  # type: ignore[misc]
    """Config hook, which vLLM calls once with all of its settings."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse unsupported settings, and set required ones.

        Raises:
            ConfigError: the checkpoint or the engine asks for something that is not supported.
        """
        model = vllm_config.model_config
        dense_above(vllm_config)  # a wrong value is refused before the engine starts
        for asked, expected, todo in _refusals(vllm_config):
            raise ConfigError(f"serving {model.model}", got=asked, expected=expected, todo=todo)
        # The row count of a module depends on data, which neither graphs nor compiled code allow.
        model.enforce_eager = True
        model.logits_processors = [*(model.logits_processors or []), BUDGETS]


def dense_above(vllm_config: Any) -> float:
    """Return how many requests a step may decode before routers are left out; infinite if not set.

    Raises:
        ConfigError: it is no whole number of at least 0.
    """
    given = (vllm_config.additional_config or {}).get(DENSE_ABOVE, math.inf)
    if given != math.inf and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
        raise ConfigError(
            f"reading {DENSE_ABOVE} of the additional config",
            got=repr(given),
            expected="a number of requests, 0 or more",
        )
    return float(given)


def _refusals(vllm_config: Any) -> list[tuple[str, str, str]]:
    """List unsupported settings: what was given, what is expected, what to do."""
    config = vllm_config.model_config.hf_config
    family = config.model_type.removeprefix(MERGED_PREFIX)
    cannot = unsupported(family, config.router, config.to_dict())
    export = "use `skipgpt export --static`, or transformers"
    checks = (
        (cannot, str(cannot), "what docs/serving.md says under Limits", export),
        (vllm_config.speculative_config, "speculative decoding", "an engine without it", ""),
        (
            vllm_config.lora_config,
            "LoRA adapters",
            "an engine without them",
            "leave --enable-lora out",
        ),
        (
            vllm_config.quant_config,
            "quantised weights",
            "weights in float32, float16 or bfloat16",
            "",
        ),
        (
            vllm_config.use_v2_model_runner,
            "vLLM's model runner V2",
            "V1, which tells the model what each request asks for",
            "set VLLM_USE_V2_MODEL_RUNNER=0",
        ),
    )
    return [(asked, expected, todo) for found, asked, expected, todo in checks if found]
