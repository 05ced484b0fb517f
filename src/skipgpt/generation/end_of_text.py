"""The stopping criterion of every generated text: it ends where the new text does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from skipgpt.generation.stop_strings import NewText


class EndOfText(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch where its new text ends; the prompt counts for no stop string.

    Args:
        texts: the new text of each row, without tokens so far.
        tell: called with each new token and the text that can be shown then.

    Attributes:
        counts: new tokens of each row, up to its end.

    Example:
        model.generate(ids, stopping_criteria=[EndOfText([NewText(tokenizer, prompt_ids, ends)])])
    """

    def __init__(
        self, texts: Sequence[NewText], tell: Callable[[int, str], None] | None = None
    ) -> None:
        self._texts, self._tell = texts, tell
        self.counts = [0] * len(texts)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Take the newest token of each row of input_ids, [B, T]; return [B] bool, the ends."""
        for row, (token, text) in enumerate(
            zip(input_ids[:, -1].tolist(), self._texts, strict=True)
        ):
            if text.ended:
                continue
            self.counts[row] += 1
            shown = text.add(token)
            if self._tell:
                self._tell(token, shown)
        return torch.tensor([text.ended for text in self._texts], device=input_ids.device)
