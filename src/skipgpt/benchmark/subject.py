"""What is measured: a dense model, the same with routers, and the text they read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from skipgpt.benchmark.shapes import shape_config
from skipgpt.checkpoint.folder import local_folder, read_info
from skipgpt.checkpoint.loading import load
from skipgpt.config import Budget, DataConfig
from skipgpt.data import encode_beginning, read_documents
from skipgpt.errors import DataError
from skipgpt.model.base import check_device, choose_dtype, load_base
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.loading.int8 import quantize_int8
from skipgpt.model.loading.limits import check_ids
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import Execution, routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import DecisionRule, RandomRoutes

InInt8 = Literal["dense-int8", "sparse-int8"]


@dataclass(frozen=True, eq=False)
class Subject:
    """Two models of one shape.

    Attributes:
        name: of the shape or the checkpoint.
        dense: the untouched transformers model.
        routed: the same with routers.
        learned: whether routes are the checkpoint's own; else they are drawn at random.
        ids: [S], the text that prompts are cut from.
        budget: what a sparsity counts; as the checkpoint was trained where None.
    """

    name: str
    dense: Any
    routed: Any
    learned: bool
    ids: Tensor
    budget: Budget | None = None

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        device: torch.device = self.dense.device
        return device

    def rule(self, sparsity: float) -> DecisionRule:
        """What decides at this sparsity; of modules, where routes are drawn at random.

        Raises:
            ConfigError: the checkpoint's calibrated curve does not reach it.
        """
        if not self.learned:
            return RandomRoutes(sparsity)
        set_sparsity(self.routed, sparsity, budget=self.budget)
        return routing_state(self.routed).rule

    @functools.cached_property
    def in_int8(self) -> Any:
        """The routed model in 8-bit weights; what stays as it was shares its memory.

        Raises:
            ConfigError: it cannot be quantised, as on a GPU.
            UnsupportedModelError: likewise, for the family that it is of.
        """
        own = {id(p): nn.Parameter(p.detach(), False) for p in self.routed.parameters()}
        return quantize_int8(copy.deepcopy(self.routed, own))

    def executing(
        self, kind: Execution | InInt8, rule: DecisionRule, *, trains: bool = False
    ) -> Any:
        """The routed model in one execution, as a model of its own on the same weights.

        Args:
            kind: the execution, which may be one in 8-bit weights.
            rule: what decides.
            trains: whether it needs routers and stand-ins that nobody else reads.
        """
        execution, _, held = kind.partition("-")
        model = sharing(self.in_int8 if held else self.routed, but_routers=trains)
        state = routing_state(model)
        state.execution, state.rule = cast("Execution", execution), rule
        return model

    def prompts(self, batch_size: int, tokens: int) -> Tensor:
        """Token ids [batch_size, tokens], other ones in every row.

        Raises:
            DataError: there is not so much text.
        """
        wanted = batch_size * tokens
        if wanted > len(self.ids):
            raise DataError(
                f"cutting {batch_size} prompts of {tokens} tokens",
                got=f"{len(self.ids):,} tokens of text",
                expected=f"{wanted:,}",
                todo="give more with --data",
            )
        return self.ids[:wanted].view(batch_size, tokens).to(self.device)


def subject_of_shape(name: str, *, device: str = "cpu", dtype: str = "auto") -> Subject:
    """A Llama of this shape with random weights and routers.

    Raises:
        ConfigError: the shape, device or dtype is unknown.

    Example:
        subject = subject_of_shape("llama-160m")
    """
    from transformers import LlamaForCausalLM

    config = shape_config(name)
    kind = choose_dtype(dtype, check_device(device))
    torch.manual_seed(0)
    with torch.device(device):
        dense = LlamaForCausalLM(config).to(kind).eval()
    ids = torch.randint(config.vocab_size, (1 << 18,))
    return Subject(name, dense, add_routers(sharing(dense)).eval(), False, ids)


def subject_of_checkpoint(
    folder: str | Path,
    data: Sequence[str],
    *,
    tokens: int = 1 << 18,
    config: DataConfig | None = None,
    base: str | None = None,
    budget: Budget | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> Subject:
    """A checkpoint beside its base model.

    Args:
        folder: of the checkpoint, or its hub id.
        data: text for the prompts; learned routes depend on it.
        tokens: how many the largest batch of prompts has; no more text is read.
        config: `max_documents`, `text_field` and `control_tokens`.
        base: where the base model lies, if not where the checkpoint says.
        budget: what a sparsity counts; as the checkpoint was trained where None.
        device: where to put both models.
        dtype: of the base model.

    Raises:
        CheckpointError: files are missing or damaged.
        DataError: there is no text.
    """
    info = read_info(local_folder(folder))
    routed, tokenizer = load(folder, base=base, merge=True, device=device, dtype=dtype)
    dense, _ = load_base(
        base or info.base,
        revision=info.revision,
        device=device,
        dtype=dtype,
        quantize=info.quantization,
    )
    config = config or DataConfig()
    read, _ = encode_beginning(
        read_documents(list(data), config), tokenizer, tokens, control_tokens=config.control_tokens
    )
    check_ids("reading the text for prompts", dense, tokenizer, read.ids)
    return Subject(Path(folder).name, dense, routed, True, read.ids, budget)


def sharing(model: nn.Module, *, but_routers: bool = False) -> Any:
    """A copy of a model's modules on the same weights, those of routers copied if asked for."""
    named = [*model.named_parameters(), *model.named_buffers()]
    same = [tensor for name, tensor in named if not (but_routers and is_routing(name))]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in same})
