"""LoRA, through PEFT."""

from __future__ import annotations

from typing import Any

from skipgpt.config import LoraStage


def with_lora(model: Any, stage: LoraStage) -> Any:
    """The model with a LoRA adapter through PEFT; unchanged if it has one."""
    if hasattr(model, "peft_config"):
        return model
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=list(stage.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)
