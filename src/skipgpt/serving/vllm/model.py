"""The model class that vLLM builds for a merged export."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import WeightsMapper

from skipgpt.serving.vllm.budget import Budgets
from skipgpt.serving.vllm.layer import RoutedLayer
from skipgpt.serving.vllm.metrics import Tally


class SkipGPTModel(LlamaModel):  # type: ignore[misc]
    """Embedding, routed layers and final norm."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".k_proj": (".kv_proj", "k"),
            ".v_proj": (".kv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )


class SkipGPTForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """A model of any family in `families.py`; they differ only in attention."""

    hf_to_vllm_mapper = SkipGPTModel.hf_to_vllm_mapper
    packed_modules_mapping = {  # noqa: RUF012
        "kv_proj": ["k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=RoutedLayer)
        self.budgets, self.tally = Budgets.of(vllm_config), Tally()

    def _init_model(self, vllm_config: Any, prefix: str = "", layer_type: Any = None) -> Any:
        return SkipGPTModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        """Return the normalised stream [T, D] of a step, each token at its request's sparsity."""
        threshold = self.budgets.thresholds()
        stream = self.model(
            input_ids, positions, intermediate_tensors, inputs_embeds, threshold=threshold
        )
        if self.tally.counts and self.budgets.is_for_requests():
            layers = self.model.layers[self.model.start_layer : self.model.end_layer]
            skipped = sum(layer.skipped for layer in layers)
            decisions = 2 * len(positions) * len(layers)
            self.tally.add(decisions, skipped, self.budgets.is_dense())
        return stream
