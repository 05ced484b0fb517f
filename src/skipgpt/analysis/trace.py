"""Per-token traces of a model on a text, from which every analysis starts.

Shapes: N tokens of all rows, L layers, M = 2 modules of a layer (attention, MLP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.data.detokenize import token_texts
from skipgpt.errors import ConfigError
from skipgpt.evaluation.closeness import ClosenessSum
from skipgpt.evaluation.perplexity import Perplexity, build_result, total_loss
from skipgpt.model.modules import first_of
from skipgpt.model.residual_stream import watching_stream
from skipgpt.model.state import record_routing
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import MODULES, Site


@dataclass(frozen=True, eq=False)
class Text:
    """A text of N tokens.

    Attributes:
        pieces: text of each token; concatenated they are the text. A character of several tokens
            belongs to the one that completes it, and the others are empty.
        ids: [N] token ids.
        row: [N] the number of the row that each was read in.
        position: [N] position in that row, from 0.
    """

    pieces: tuple[str, ...]
    ids: Tensor
    row: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True, eq=False)
class Reading:
    """Per-token measurements of any model on a text.

    Attributes:
        text: what was read.
        surprisal: [N] nats of each token under the model; nan at the first of a row.
        entropy: [N] nats of the distribution of the next token.
        norm: [L + 1, N] root mean square of the residual stream, entering each layer and leaving
            the last.
    """

    text: Text
    surprisal: Tensor
    entropy: Tensor
    norm: Tensor


@dataclass(frozen=True, eq=False)
class DenseTrace(Reading):
    """A text under a model that skips nothing.

    Attributes:
        cosine: [L, M, N] of the residual stream before and after each module.
        layer_cosine: [L, N] of the stream before and after each layer.
        nll_per_token: mean loss in nats.
    """

    cosine: Tensor
    layer_cosine: Tensor
    nll_per_token: float


@dataclass(frozen=True, eq=False)
class TextTrace(Reading):
    """A text under a model with routers.

    Attributes:
        keep: [L, M, N] bool, which token ran which module.
        measured: loss and sparsity, as `skipgpt eval` gives them for the same rows.
    """

    keep: Tensor
    measured: Perplexity

    @property
    def compute(self) -> Tensor:
        """[N] share of its modules that each token ran."""
        return self.keep.float().mean((0, 1))


def text_of(rows: Sequence[Tensor] | Tensor, tokenizer: Any) -> Text:
    """Return the text of rows of token ids, [N, T] or of different lengths, read one by one.

    Example:
        text = text_of(rows_of(ids, 256), tokenizer)
    """
    rows = list(rows)
    ids = torch.cat(rows).cpu()
    number = torch.cat([torch.full((len(row),), n) for n, row in enumerate(rows)])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    return Text(tuple(token_texts(ids.tolist(), tokenizer)), ids, number, position)


def trace_text(
    model: nn.Module,
    tokenizer: Any,
    rows: Tensor | Sequence[Tensor],
    *,
    batch_size: int = 8,
    closeness_to: nn.Module | None = None,
) -> TextTrace:
    """Run a routed model over rows of a text, at its current sparsity, and trace it.

    Args:
        model: with routers; in `gated`, `sparse` or `auto` execution.
        tokenizer: the base model's tokenizer.
        rows: of token ids, as from `skipgpt.evaluation.windows.rows_of`.
        batch_size: rows per forward.
        closeness_to: as for `skipgpt.perplexity`.

    Raises:
        ConfigError: the model has no routers, or runs dense and decides nothing.

    Example:
        with skipgpt.at_sparsity(model, 0.4):
            trace = trace_text(model, tokenizer, rows)
        print(trace.measured)
    """
    reading = _Reader(model)
    closeness = None if closeness_to is None else ClosenessSum(closeness_to)

    def on_batch(ids: Tensor, logits: Tensor, losses: Tensor) -> None:
        reading.on_batch(ids, logits, losses)
        if closeness:
            reading.is_paused = True  # the dense forward may run the same layers
            closeness.add(ids, logits)
            reading.is_paused = False

    with record_routing(model) as trace, reading.following():
        nll, tokens = total_loss(model, rows, batch_size, on_batch)
    if not trace.steps:
        raise ConfigError(
            "tracing a text",
            got="a model in dense execution, which decides nothing",
            expected="gated, sparse or auto execution",
        )
    keep = torch.cat([step.stacked("keep").cpu() for step in trace.steps], dim=-1)
    return TextTrace(
        text_of(rows, tokenizer),
        *reading.read(),
        keep=keep.reshape(-1, len(MODULES), keep.shape[-1]),
        measured=build_result(model, trace.counts(), nll, tokens, rows, closeness),
    )


def trace_dense(
    model: nn.Module, tokenizer: Any, rows: Tensor | Sequence[Tensor], *, batch_size: int = 8
) -> DenseTrace:
    """Run a model over a text with everything kept, and trace how modules change the stream.

    The model needs routers, whose outputs are ignored. Rows are as for `trace_text`.

    Raises:
        ConfigError: the model has no routers.
    """
    cosines: dict[tuple[Site, ...], list[Tensor]] = {}

    def turned(unit: tuple[Site, ...], before: Tensor, after: Tensor) -> None:
        cosine = cosine_similarity(before.float(), after.float(), dim=-1)
        cosines.setdefault(unit, []).append(cosine.flatten().cpu())

    reading = _Reader(model)
    with watching_stream(model, turned), reading.following():
        nll, tokens = total_loss(model, rows, batch_size, reading.on_batch)
    each = {unit: torch.cat(parts) for unit, parts in cosines.items()}
    layers = [layer.index for layer in routed_layers(model)]
    cosine = [torch.stack([each[(Site(n, kind),)] for kind in MODULES]) for n in layers]
    whole = [each[tuple(Site(n, kind) for kind in MODULES)] for n in layers]
    return DenseTrace(
        text_of(rows, tokenizer),
        *reading.read(),
        cosine=torch.stack(cosine),
        layer_cosine=torch.stack(whole),
        nll_per_token=nll / tokens,
    )


class _Reader:
    """Collects what a `Reading` holds, batch by batch."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = routed_layers(model)
        self.surprisal: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.norms: list[list[Tensor]] = [[] for _ in range(len(self.layers) + 1)]
        self.is_paused = False

    def on_batch(self, _: Tensor, logits: Tensor, losses: Tensor) -> None:
        for row, loss in zip(logits, losses, strict=True):  # row by row, to bound memory
            scores = row.float().log_softmax(-1)
            self.entropy.append(-(scores.exp() * scores).sum(-1).cpu())
            self.surprisal.append(torch.cat([loss.new_full((1,), torch.nan), loss]).cpu())

    @contextmanager
    def following(self) -> Iterator[None]:
        """Measure the stream at every layer inside the block."""

        def entering(n: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._measure(n, args[0] if args else kwargs["hidden_states"])

            return hook

        def leaving(_: nn.Module, args: Any, output: Any) -> None:
            self._measure(len(self.layers), first_of(output))

        with ExitStack() as stack:
            for n, layer in enumerate(self.layers):
                stack.enter_context(layer.register_forward_pre_hook(entering(n), with_kwargs=True))
            if self.layers:
                stack.enter_context(self.layers[-1].register_forward_hook(leaving))
            yield

    def _measure(self, n: int, stream: Tensor) -> None:
        if not self.is_paused:
            self.norms[n].append(stream.float().square().mean(-1).sqrt().flatten().cpu())

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Surprisal and entropy [N], norms [L + 1, N]."""
        norm = torch.stack([torch.cat(each) for each in self.norms])
        return torch.cat(self.surprisal), torch.cat(self.entropy), norm
