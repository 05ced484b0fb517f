"""Adapter of routed models to lm-evaluation-harness: `--model skipgpt`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from skipgpt.checkpoint.loading import load_placed
from skipgpt.config import Placement, as_budget
from skipgpt.data.encoding import boundaries
from skipgpt.errors import ConfigError, MissingExtraError
from skipgpt.evaluation.harness.keep_counts import RequestCounts, add_up, ran_by_row, sparsity_of
from skipgpt.evaluation.harness.quiet import quietly
from skipgpt.evaluation.harness.response_cache import answers_key, use_own_table
from skipgpt.evaluation.harness.scoring import BatchSize, Scorer
from skipgpt.generation.end_of_text import EndOfText
from skipgpt.generation.stop_strings import NewText
from skipgpt.model.loading.generation_settings import ends_of, plain_generation
from skipgpt.model.loading.limits import check_ids, check_length
from skipgpt.model.state import routing_state
from skipgpt.system.progress import advancing

try:
    from lm_eval.api.model import CacheHook, hash_args
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from skipgpt.evaluation.harness.encoding import EncodingLM, with_bos
except ImportError as error:
    raise MissingExtraError("lm_eval", "eval", "running benchmarks") from error


@register_model("skipgpt")
class RoutedLM(EncodingLM):
    """Answers requests of the harness with a checkpoint, and counts what it ran for each.

    Args:
        pretrained: a checkpoint folder, a hub id of one, or a model with routers.
        tokenizer: tokenizer of that model; a checkpoint has its own.
        sparsity: share to save; the trained target if None.
        budget: the unit of `sparsity`: `modules`, `flops` or `time`; that of the checkpoint if
            None.
        base: where the base model is, if not where the checkpoint says.
        execution: `auto`, `sparse`, `gated`, or `dense`, which ignores the routers.
        batch_size: rows per forward; `auto` takes about 8,192 tokens, and fewer if the device's
            memory is too small.
        max_batch_size: the most rows of `auto`.
        padding_side: padding side of scored requests. Decoding always pads left.
        max_length: context length, if not as the model's config says.
        add_bos_token: whether BOS precedes each prompt; the tokenizer's default if None.
        prefix_token_id: token that a text without context is predicted from; if None, the one
            before each document, which is never a token of a chat's turns.
        device: where to put the model.
        dtype: dtype of the base model.
        quantize: `int8`, as for `skipgpt.load`.

    Attributes:
        notes: by hash of a request, whether its context was cut off and what it ran; stored beside
            the harness's response cache, if there is one.

    Raises:
        SkipGPTError: the checkpoint cannot be loaded.

    Example:
        lm = RoutedLM("out/nano-25", sparsity=0.25)
        lm_eval.simple_evaluate(lm, tasks=["piqa"])
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        sparsity: float | None = None,
        budget: str | None = None,
        base: str | None = None,
        execution: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int = 64,
        padding_side: Literal["left", "right"] = "right",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        quantize: str | None = None,
    ) -> None:
        model = pretrained
        if isinstance(pretrained, str):
            # The harness's command defaults to a GPU, also where there is none.
            if device.startswith("cuda") and not torch.cuda.is_available():
                device = "cpu"
            place, unit = Placement(device, dtype, base, quantize), as_budget(budget)
            model, tokenizer = load_placed(
                pretrained, place, sparsity=sparsity, budget=unit, merge=True
            )
        if add_bos_token is not None and tokenizer is not None:
            tokenizer = with_bos(tokenizer, add_bos_token)
        before = [] if prefix_token_id is None else [prefix_token_id]
        if tokenizer is not None:
            before = before or boundaries(tokenizer).prefix
        if execution:
            routing_state(model).execution = execution  # type: ignore[assignment]
        automatic = str(batch_size).startswith("auto")
        most = max_batch_size if automatic else int(batch_size)
        with quietly():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                max_length=max_length,
                add_bos_token=add_bos_token,
                prefix_token_id=before[-1] if before else None,
                batch_size=most,
                max_batch_size=max_batch_size,
            )
        self.before = before or [self.prefix_token_id]
        self.notes: MutableMapping[str, Any] = {}
        self.scorer = Scorer(
            self.model,
            self.tokenizer.pad_token_id,
            self.max_length,
            BatchSize(most, automatic),
            padding_side,
        )
        self._decoded: list[RequestCounts] = []
        self.ends = ends_of(self.model, self.tokenizer)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Cache this model's responses from now on, with notes beside them."""
        super().set_cache_hook(cache_hook)
        if cache_hook.dbdict is not None:
            from sqlitedict import SqliteDict

            key = answers_key(self)
            name = f"{cache_hook.dbdict.filename.removesuffix('.db')}.notes.db"
            self.notes = SqliteDict(name, autocommit=True)
            for database in (cache_hook.dbdict, self.notes):
                use_own_table(database, key)

    def sparsity_over(self, requests: Iterable[Any] | None = None) -> dict[str, float] | None:
        """Return the measured sparsity over these requests, or over all that were run."""
        rans = (each["ran"] for each in self._notes_of(requests))
        return sparsity_of(self.model, filter(None, rans))

    def cut_off(self, requests: Iterable[Any] | None = None) -> int:
        """Count the requests that were longer than the model's context."""
        return sum(each["cut"] for each in self._notes_of(requests))

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes about the model into its results."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_dtype": str(self.model.dtype),
            "sparsity": self.sparsity_over(),
            "cut_off_requests": self.cut_off(),
        }

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        answers: list[Any] = [None] * len(requests)
        pairs = [
            (self.before if before == [self.prefix_token_id] else before, after)
            for _, before, after in requests
        ]
        for n, scored in self.scorer.score(pairs):
            answers[n] = (scored.nats, scored.greedy)
            self._note("loglikelihood", requests[n][0], scored.ran, scored.cut)
            self.cache_hook.add_partial("loglikelihood", requests[n][0], answers[n])
        return answers

    @advancing("scoring whole texts")
    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, cut into windows if they are longer than the context.

        As in the harness, each token is predicted once, the first from what stands before a text.
        """
        totals: list[float] = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            first, *more = self.before
            windows = get_rolling_token_windows(
                token_list=[*more, *ids] if ids else [],
                prefix_token=first,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            pairs[:1] = [(self.before, after[len(more) :]) for _, after in pairs[:1]]
            found = list(self.scorer.score(pairs))
            totals.append(sum(scored.nats for _, scored in found))
            ran = add_up([scored.ran for _, scored in found if scored.ran])
            self._note("loglikelihood_rolling", request.args, ran, False)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    @advancing("generating answers")
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Decode texts up to a stop string, in batches of requests with equal settings."""
        keys = [
            (str(each.args[1]), -len(self.tok_encode(each.args[0])), each.args[0])
            for each in requests
        ]
        options = [normalize_gen_kwargs(each.args[1], self.max_gen_toks) for each in requests]
        for each in options:
            _check_one_row(each)
        rooms = [self.max_length - int(each["max_gen_toks"]) for each in options]
        for room in rooms:  # longer prompts lose their beginning
            check_length("decoding a prompt", self.max_length, 1, self.max_length - room)
        cut = [-key[1] > room for key, room in zip(keys, rooms, strict=True)]
        texts = [""] * len(requests)
        waiting = sorted(range(len(requests)), key=keys.__getitem__)
        while waiting:
            alike = [n for n in waiting if keys[n][0] == keys[waiting[0]][0]]
            batch = alike[: self.scorer.batch.rows(-keys[waiting[0]][1] + self.max_gen_toks)]
            found = self.scorer.batch.fitting(
                lambda batch=batch: self._decode([requests[n] for n in batch]),  # type: ignore[misc]
                len(batch),
            )
            if found is None:
                continue
            for place, n in enumerate(batch):
                texts[n] = found[place]
                ran = self._decoded[place] if self._decoded else None
                self._note("generate_until", requests[n].args, ran, cut[n])
            waiting = [n for n in waiting if n not in batch]
        return texts

    def _decode(self, batch: list[Any]) -> list[str]:
        """Let the harness decode requests as one batch, the longest prompt first."""
        self.batch_size_per_gpu = len(batch)
        return list(super().generate_until(batch, disable_tqdm=True))

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        check_ids("decoding a prompt", self.model, self.tokenizer, context)
        ends, pad = ends_of(self.model, self.tokenizer, stop), self.tokenizer.pad_token_id
        texts = [NewText(self.tokenizer, ids, ends) for ids in context.tolist()]
        until = EndOfText(texts)
        if not options["do_sample"]:
            options.pop("temperature", None)  # the harness says 0, of which transformers warns
        with self.scorer.recording() as trace, plain_generation(self.model, ends):
            out: Tensor = self.model.generate(
                input_ids=context,
                max_length=max_length,
                pad_token_id=pad,
                stopping_criteria=[until],
                **options,
            )
        for row, text, count in zip(out[:, context.shape[1] :], texts, until.counts, strict=True):
            # A token that ends a turn is not part of the text, even if it is no special token.
            row[count - (text.ended and not text.found) :] = pad
        # The last token of a row is decoded, but not read again.
        prompts: list[int] = options["attention_mask"].sum(-1).tolist()
        read = [count - 1 for count in until.counts]
        self._decoded = ran_by_row(trace, prompts, read) if trace else []
        return out

    def _note(self, kind: str, request: Any, ran: RequestCounts | None, cut: bool) -> None:
        self.notes[hash_args(kind, request)] = {"cut": cut, "ran": ran and list(ran)}

    def _notes_of(self, requests: Iterable[Any] | None) -> list[dict[str, Any]]:
        if requests is None:
            return list(self.notes.values())
        keys: Sequence[str] = [hash_args(each.request_type, each.args) for each in requests]
        return [self.notes[key] for key in keys if key in self.notes]


def _check_one_row(options: Mapping[str, Any]) -> None:
    """Refuse settings with which one prompt becomes several rows.

    Dense answers are refused, too: they are there to be compared with routed ones.
    """
    for name in ("num_beams", "num_return_sequences"):
        if options.get(name, 1) != 1:
            raise ConfigError(
                "reading the generation_kwargs of a task",
                got=f"{name}: {options[name]}",
                expected="1: the tokens that ran are counted for one row per prompt",
                todo=f"leave {name} out of them, or set it to 1",
            )
