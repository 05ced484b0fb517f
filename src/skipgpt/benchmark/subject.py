"""What is benchmarked: a dense model, the same with routers, and the text they read."""

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
from skipgpt.checkpoint.loading import load_base_of, load_placed
from skipgpt.config import Budget, DataConfig, Placement
from skipgpt.data import encode_beginning, read_documents
from skipgpt.errors import ConfigError, DataError
from skipgpt.model.base import check_device, choose_dtype
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.loading.int8 import quantize_int8
from skipgpt.model.loading.limits import check_ids
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import Execution, routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import DecisionRule, RandomRoutes

InInt8 = Literal["dense-int8", "sparse-int8"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A dense model and the same with routers.

    Attributes:
        name: name of the shape or the checkpoint.
        dense: the untouched transformers model.
        routed: the same with routers.
        learned: whether routes are the checkpoint's own; else they are drawn at random.
        ids: [S], the text that prompts are cut from.
        sparsities: those to time where none are asked for, in the unit of the checkpoint.
        base: of a checkpoint, what it was trained on: hub id, folder, GGUF file or `nano`.
    """

    name: str
    dense: Any
    routed: Any
    learned: bool
    ids: Tensor
    sparsities: tuple[float, ...] = (0.25, 0.4)
    base: str = ""

    @property
    def device(self) -> torch.device:
        """The device of both models."""
        device: torch.device = self.dense.device
        return device

    def unit(self, budget: Budget | None = None) -> Budget:
        """Return the unit of sparsities: this one, or where None that of the checkpoint or shape.

        Raises:
            ConfigError: routes are random, and the unit is not modules.
        """
        if not self.learned:
            return check_budget_of_shape(budget)
        curves = routing_state(self.routed).curves
        return budget or (curves.budget if curves else "modules")

    def rule(self, sparsity: float, budget: Budget | None = None) -> DecisionRule:
        """Return the decision rule that saves this share of a unit.

        Raises:
            ConfigError: it is beyond the calibration curve, or the unit is not known here.
        """
        unit = self.unit(budget)
        if not self.learned:
            return RandomRoutes(sparsity)
        set_sparsity(self.routed, sparsity, budget=unit)
        return routing_state(self.routed).rule

    @functools.cached_property
    def in_int8(self) -> Any:
        """The routed model with 8-bit weights; unquantised weights are shared.

        Raises:
            ConfigError: it cannot be quantised, as on a GPU.
            UnsupportedModelError: its family cannot be quantised.
        """
        own = {id(p): nn.Parameter(p.detach(), False) for p in self.routed.parameters()}
        return quantize_int8(copy.deepcopy(self.routed, own))

    def executing(
        self, kind: Execution | InInt8, rule: DecisionRule, *, trains: bool = False
    ) -> Any:
        """Return a routed model set to one execution, a separate copy on the same weights.

        With `trains`, routers and stand-ins are copied too, since training changes them.
        """
        execution, _, quantized = kind.partition("-")
        model = sharing(self.in_int8 if quantized else self.routed, but_routers=trains)
        state = routing_state(model)
        state.execution, state.rule = cast("Execution", execution), rule
        return model

    def prompts(self, batch_size: int, tokens: int) -> Tensor:
        """Return token ids [batch_size, tokens], different in every row.

        Raises:
            DataError: there is too little text.
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


def check_budget_of_shape(budget: Budget | None) -> Budget:
    """Return the unit of sparsities of random routes, modules; a ConfigError for another one."""
    if budget in (None, "modules"):
        return "modules"
    raise ConfigError(
        "choosing the budget",
        got=f"{budget} of a shape, whose routes are drawn at random",
        expected="modules, each of which is skipped at the same rate",
        todo="leave --budget out, or give a checkpoint",
    )


def subject_of_shape(name: str, *, device: str = "cpu", dtype: str = "auto") -> Subject:
    """Make a Llama of this shape with random weights and routers.

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
    device: str = "cpu",
    dtype: str = "auto",
) -> Subject:
    """Load a checkpoint beside its base model.

    Prompts are cut from `data`, of which no more than `tokens`, those of the largest batch, are
    read; learned routes depend on it.

    Raises:
        CheckpointError: files are missing or damaged.
        DataError: there is no text.
    """
    info = read_info(local_folder(folder))
    placement = Placement(device, dtype, base)
    routed, tokenizer = load_placed(folder, placement, merge=True)
    dense, _ = load_base_of(info, placement)
    config = config or DataConfig()
    read, _ = encode_beginning(
        read_documents(list(data), config), tokenizer, tokens, control_tokens=config.control_tokens
    )
    check_ids("reading the text for prompts", dense, tokenizer, read.ids)
    own = (clamp_to_curve(routed, info.target_sparsity),)
    return Subject(Path(folder).name, dense, routed, True, read.ids, own, info.base)


def sharing(model: nn.Module, *, but_routers: bool = False) -> Any:
    """Copy a model's modules but share its weights; `but_routers` copies those of routers."""
    named = [*model.named_parameters(), *model.named_buffers()]
    same = [tensor for name, tensor in named if not (but_routers and is_routing(name))]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in same})
