"""Loss on a text, and the form in which it was measured."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.errors import ConfigError
from skipgpt.evaluation.continuations import Continuations, measure_continuations
from skipgpt.evaluation.perplexity import Perplexity, perplexity_of_spans
from skipgpt.evaluation.protocols import CutText, Form


@dataclass(frozen=True)
class TextResult:
    """The result of a model on a text.

    Attributes:
        loss: with the sparsity of the same run, and closeness to dense if measured.
        form: how the text was cut.
        source: where a corpus came from; None for other text.
        bits_per_byte: for `bits`, else None.
        continuations: the model's greedy continuations, if measured.
    """

    loss: Perplexity
    form: Form
    source: str | None = None
    bits_per_byte: float | None = None
    continuations: Continuations | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the fields of the loss, and the form."""
        form = {"form": self.form.name, "window": self.form.window}
        more = {
            "stride": self.form.stride,
            "source": self.source,
            "bits_per_byte": self.bits_per_byte,
            "continuations": self.continuations and dataclasses.asdict(self.continuations),
        }
        return {**dataclasses.asdict(self.loss), **form, **{k: v for k, v in more.items() if v}}

    def __str__(self) -> str:
        lines = [str(self.loss)]
        if self.loss.closeness is not None:
            lines.append(str(self.loss.closeness))
        if self.bits_per_byte is not None:
            lines.append(f"{self.bits_per_byte:.4f} bits per byte")
        if self.form.name != "blocks":
            lines.append(f"form: {self.form}" + (f"; {self.source}" if self.source else ""))
        if self.continuations is not None:
            lines.append(str(self.continuations))
        return "\n".join(lines)


def measure_text(
    model: nn.Module,
    text: CutText,
    *,
    batch_size: int = 8,
    closeness_to: nn.Module | None = None,
    continuations: int = 0,
) -> TextResult:
    """Measure loss and perplexity on a text, and bits per byte if that is its form.

    `text` is from `skipgpt.evaluation.protocols.cut_text`. The first `continuations` rows are
    continued greedily and scored by `closeness_to`; 0 continues none. All else is as for
    `perplexity`.

    Raises:
        ConfigError: continuations without `closeness_to`.
        DataError: fewer rows than `continuations`.

    Example:
        print(measure_text(model, cut_text(["README.md"], tokenizer, model, Form("sliding"))))
    """
    written = None
    if continuations:
        if closeness_to is None:
            raise ConfigError(
                "measuring continuations",
                got="no dense model to judge them",
                expected="closeness to dense measured, too",
                todo="leave --no-closeness out",
            )
        rows = [span.ids for span in text.spans]
        written = measure_continuations(
            model, rows, continuations, closeness_to, batch_size=batch_size
        )
    loss = perplexity_of_spans(model, text.spans, batch_size=batch_size, closeness_to=closeness_to)
    bits = loss.nll_per_token * loss.tokens / math.log(2) / text.bytes if text.bytes else None
    return TextResult(loss, text.form, text.source, bits, written)
