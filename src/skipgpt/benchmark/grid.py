"""What is benchmarked: phases, sizes, sparsities, executions and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from skipgpt.benchmark.timing.candidate import Timed
from skipgpt.config import check_sparsity
from skipgpt.errors import ConfigError

PhaseName = Literal["prefill", "decode", "generate", "router_step", "lora_step"]


@dataclass(frozen=True)
class Grid:
    """The cells to time, and how often.

    Attributes:
        phases: prefill, decode, generate, router_step, lora_step.
        batch_sizes: sequences per batch.
        prompt_tokens: lengths of the prompt, which is in the cache when decoding starts, or of the
            sequences of a training step.
        decode_tokens: tokens decoded after the prompt.
        sparsities: shares to save, in the unit of the subject's budget; None for the one that a
            checkpoint is set to, or 25 and 40 % of a shape.
        executions: auto and sparse, and reference runs: transformers (dense with transformers' own
            cache in place of the routed model's), gated (as the authors run it, without
            their copies to the host), static (a model of fewer layers with the same FLOPs),
            compiled (dense by `torch.compile`); sparse-int8 with 8-bit weights, which adds
            dense-int8.
        repeats: timed rounds.

    Raises:
        ConfigError: a name is unknown, a number too small, or a list empty or with duplicates.
    """

    phases: tuple[PhaseName, ...] = ("prefill", "decode", "generate")
    batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (512,)
    decode_tokens: int = 16
    sparsities: tuple[float, ...] | None = None
    executions: tuple[Timed, ...] = ("auto", "transformers")
    repeats: int = 7

    def __post_init__(self) -> None:
        for name, values in (
            ("phases", self.phases),
            ("batch sizes", self.batch_sizes),
            ("prompt tokens", self.prompt_tokens),
            ("sparsities", self.sparsities),
            ("executions", self.executions),
        ):
            if values is not None:
                _check_each_once(name, values)
        _check_known("phases", self.phases, get_args(PhaseName))
        _check_known("executions", self.executions, get_args(Timed))
        for sparsity in self.sparsities or ():
            check_sparsity(sparsity)
        for name, numbers in (
            ("batch sizes", self.batch_sizes),
            ("prompt tokens", self.prompt_tokens),
            ("decode tokens", (self.decode_tokens,)),
            ("repeats", (self.repeats,)),
        ):
            if min(numbers) < 1:
                raise ConfigError(f"reading {name}", got=str(min(numbers)), expected="1 or more")
        if min(self.prompt_tokens) < 2 and {"router_step", "lora_step"} & set(self.phases):
            raise ConfigError(
                "reading prompt tokens",
                got="1 with a training step among the phases",
                expected="2 or more: the first token predicts the second",
            )


def _check_each_once(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ConfigError(
            f"reading {name}",
            got=", ".join(map(str, values)) or "none",
            expected="one or more, each once",
        )


def _check_known(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [value for value in values if value not in known]:
        raise ConfigError(
            f"reading {name}", got=repr(unknown[0]), expected="one of " + ", ".join(known)
        )
