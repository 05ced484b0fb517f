"""What is benchmarked: phases, sizes, sparsities, executions and repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from skipgpt.benchmark.executions import EXECUTIONS, Timed
from skipgpt.config import Budget, check_pair, check_sparsity
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
        sparsities: shares to save; None for the one that a checkpoint is set to, or 25 and 40 %
            of a shape.
        executions: what runs beside dense, of `EXECUTIONS`.
        repeats: timed rounds.
        budget: the unit of `sparsities`: `modules`, `flops` or `time`; as the checkpoint was
            trained where None, and modules of a shape.

    Raises:
        ConfigError: a name is unknown, a number too small, a list empty or with duplicates, or a
            budget comes without sparsities.
    """

    phases: tuple[PhaseName, ...] = ("prefill", "decode", "generate")
    batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (512,)
    decode_tokens: int = 16
    sparsities: tuple[float, ...] | None = None
    executions: tuple[Timed, ...] = ("auto", "transformers")
    repeats: int = 7
    budget: Budget | None = None

    def __post_init__(self) -> None:
        for name in ("phases", "batch_sizes", "prompt_tokens", "sparsities", "executions"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ConfigError(
                    f"reading {name.replace('_', ' ')}",
                    got=", ".join(map(str, values)) or "none",
                    expected="one or more, each once",
                )
        for name, known in (("phases", get_args(PhaseName)), ("executions", tuple(EXECUTIONS))):
            if unknown := [value for value in getattr(self, name) if value not in known]:
                expected = "one of " + ", ".join(known)
                raise ConfigError(f"reading {name}", got=repr(unknown[0]), expected=expected)
        for sparsity in self.sparsities or ():
            check_sparsity(sparsity, budget=self.budget)
        check_pair(self.sparsities[0] if self.sparsities else None, self.budget)
        for name, least in (
            ("batch sizes", min(self.batch_sizes)),
            ("prompt tokens", min(self.prompt_tokens)),
            ("decode tokens", self.decode_tokens),
            ("repeats", self.repeats),
        ):
            if least < 1:
                raise ConfigError(f"reading {name}", got=str(least), expected="1 or more")
        if min(self.prompt_tokens) < 2 and {"router_step", "lora_step"} & set(self.phases):
            raise ConfigError(
                "reading prompt tokens",
                got="1 with a training step among the phases",
                expected="2 or more: the first token predicts the second",
            )
