"""Check and change requests before the engine sees them.

A request is refused if the checkpoint does not offer its sparsity. Its text ends where our own
server ends it. Requests of different sparsity must not share cached prefixes, since each layer's
keys and values depend on what the layers below it skipped: the sparsity becomes part of the salt of
the prefix cache.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from skipgpt.data.encoding import have_control_tokens
from skipgpt.errors import ConfigError
from skipgpt.model.loading.generation_settings import ends_in, stop_ids
from skipgpt.serving.vllm.families import ARCHITECTURES

_WATCHED = "_skipgpt_watches"


def watch_requests() -> None:
    """Check and salt each request of a merged export; other models are left alone."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    process = InputProcessor.process_inputs
    if getattr(InputProcessor, _WATCHED, False):
        return

    @functools.wraps(process)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.model_config.architecture not in ARCHITECTURES.values():
            return process(self, request_id, prompt, params, *args, **kwargs)
        from skipgpt.serving.vllm.budget import SparsityRange

        offered = SparsityRange.of(self.model_config.hf_config)
        try:
            threshold = offered.threshold(params)
        except ConfigError as error:  # what vLLM answers with status 400
            raise VLLMValidationError(str(error), parameter="sparsity") from error
        stops = getattr(params, "stop", None) or []
        # The engine seeks stop strings in the text alone, which has no control tokens.
        if self.tokenizer is not None and have_control_tokens(self.tokenizer, stops):
            raise VLLMValidationError(
                "a stop string holds a control token and other letters; give the token alone",
                parameter="stop",
            )
        request = process(self, request_id, prompt, params, *args, **kwargs)
        if request.cache_salt is not None or threshold != offered.own:
            request.cache_salt = f"{request.cache_salt or ''}|skipgpt {threshold!r}"
        if request.sampling_params is not None and self.tokenizer is not None:
            add_ends(request.sampling_params, self.generation_config_fields, self.tokenizer)
        return request

    InputProcessor.process_inputs = process_inputs
    setattr(InputProcessor, _WATCHED, True)


def add_ends(params: Any, settings: Mapping[str, Any], tokenizer: Any) -> None:
    """End a request at special tokens among its stop strings, and where the base ends a turn.

    Changes the sampling parameters `params`; `settings` is the generation config of the model.
    """
    stops = list(params.stop or ())
    ids = stop_ids(tokenizer, stops)
    if not params.ignore_eos:
        ends = ends_in(settings, tokenizer, stops)
        ids = ids.union(ends.ids)
        if params.detokenize and ends.strings:
            params.stop = list(ends.strings)
            if not params.include_stop_str_in_output:
                params.output_text_buffer_length = max(map(len, params.stop)) - 1
    params.stop_token_ids = sorted(ids.union(params.stop_token_ids or ()))
    params._all_stop_token_ids.update(ids)
