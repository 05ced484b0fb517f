"""The sparsity of each request: from its sampling parameters to a threshold per token.

A request may set `SamplingParams(extra_args={"sparsity": 0.4, "budget": "flops"})`, over HTTP
`"vllm_xargs": {"sparsity": 0.4}`; without a budget the sparsity is in the unit of training. vLLM
tells logits processors which request is in which row of the batch, before each forward; `Budgets`
is a logits processor that keeps thresholds and leaves logits unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from skipgpt.config import check_pair
from skipgpt.errors import ConfigError
from skipgpt.model.auto import curves_of
from skipgpt.model.sparsity import threshold_of
from skipgpt.routing.curve import Curves
from skipgpt.serving.vllm.engine_config import DENSE_ABOVE, dense_above

ARGUMENT, UNIT = "sparsity", "budget"
"""The extra sampling parameters."""


@dataclass(frozen=True)
class SparsityRange:
    """The sparsities that a merged export offers.

    Attributes:
        curves: its calibration curves; None where it was never calibrated.
        own: threshold of requests without a sparsity.
    """

    curves: Curves | None
    own: float

    @classmethod
    def of(cls, config: Any) -> SparsityRange:
        """Read the config of a merged export."""
        curves, unit = curves_of(config), getattr(config, "budget", None)
        own = 0.0 if config.sparsity is None else threshold_of(curves, config.sparsity, unit)
        return cls(curves, own)

    def threshold(self, sampling: Any) -> float:
        """Return the threshold that a request's sampling parameters ask for.

        Raises:
            ConfigError: the sparsity is no number, out of range, or beyond the curve, or its unit
                is unknown or given alone.
        """
        given = getattr(sampling, "extra_args", None) or {}
        asked, unit = given.get(ARGUMENT), given.get(UNIT)
        check_pair(asked, unit)
        if asked is None:
            return self.own
        if isinstance(asked, bool) or not isinstance(asked, int | float):
            raise ConfigError(
                f"reading {ARGUMENT}", got=repr(asked), expected="a number, as in 0.25"
            )
        return threshold_of(self.curves, asked, unit)


class Budgets(LogitsProcessor):  # type: ignore[misc]
    """Thresholds of the requests in the batch; one object per worker.

    The model finds it in the config of the engine.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._range = SparsityRange.of(vllm_config.model_config.hf_config)
        self._device = device
        self._rows: dict[int, float] = {}
        self._dense_above = dense_above(vllm_config)
        vllm_config.compilation_config.static_forward_context[__name__] = self

    @classmethod
    def of(cls, vllm_config: Any) -> Budgets:
        """Return the object of this worker."""
        found: Budgets = vllm_config.compilation_config.static_forward_context[__name__]
        return found

    def update_state(self, batch_update: Any) -> None:
        """Apply added, removed and moved requests."""
        process_dict_updates(self._rows, batch_update, self._of_request)

    def is_for_requests(self) -> bool:
        """Whether the current forward runs requests, and is not a profiling run of vLLM."""
        return get_forward_context().attn_metadata is not None

    def is_dense(self) -> bool:
        """Whether the current forward decodes so many requests that no router runs."""
        each = next(iter((get_forward_context().attn_metadata or {}).values()), None)
        if each is None or self._dense_above == math.inf:
            return False
        if not hasattr(each, "query_start_loc") or not hasattr(each, "max_query_len"):
            raise ConfigError(
                f"following {DENSE_ABOVE}",
                got=f"attention metadata of the type {type(each).__name__}",
                expected="an attention backend that says how many tokens each request has",
            )
        requests = len(each.query_start_loc) - 1
        return each.max_query_len == 1 and requests > self._dense_above

    def thresholds(self) -> Tensor | float:
        """Return the thresholds of the current forward: one per token [T], or one for all.

        Every module is kept in vLLM's memory profiling run, and in steps that decode more requests
        than are worth routing.
        """
        metadata = get_forward_context().attn_metadata
        if metadata is None or self.is_dense():
            return -math.inf
        if not self._rows:
            return self._range.own
        starts = next(iter(metadata.values())).query_start_loc
        requests = len(starts) - 1
        each = [self._rows.get(row, self._range.own) for row in range(requests)]
        if len(set(each)) == 1:
            return each[0]
        return torch.tensor(each, device=self._device).repeat_interleave(starts.diff())

    def is_argmax_invariant(self) -> bool:
        """Return True: logits are unchanged."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits unchanged."""
        return logits

    def _of_request(self, sampling: Any, *_: Any) -> float | None:
        """Return the threshold of a new request; None where it is the checkpoint's own."""
        asked = self._range.threshold(sampling)
        return None if asked == self._range.own else asked
