"""Routed layers that run with kernels, against execution `gated` and against packing in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache
from twins import FAST

from cases import (
    CLOSE,
    LEFT_PADDED,
    ONE_ROW,
    SITES,
    Inputs,
    every_batch,
    every_family,
    every_layout,
    routed,
)
from plain_kernels import PLAIN
from skipgpt.kernels.interface import Kernels
from skipgpt.kernels.select import kernels_for
from skipgpt.model.execution import decode, run
from skipgpt.model.execution.plan import has_kernels, needs_host_sync
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import MODULES, Forced, RandomRoutes

WHOLE = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo", "gemma", "cohere2"}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def poisoned() -> Kernels:
    """The plain twins, except that what they may leave arbitrary is no number."""

    def packed(read: Tensor, rows: Tensor, count: Tensor, *rest: Any) -> Tensor:
        made = PLAIN.gate_up(read, rows, count, *rest)
        made[int(count) :] = torch.nan
        return made

    def in_place(read: Tensor, rows: Tensor, count: Tensor, *rest: Any) -> Tensor:
        made = PLAIN.row_linear(read, rows, count, *rest)
        return torch.full_like(made, torch.nan).index_copy(
            0, rows[: int(count)].long(), made[rows[: int(count)].long()]
        )

    def attend(*given: Any) -> Tensor:
        made, (columns, counts) = PLAIN.attend(*given), given[3:5]
        for sequence, places, count in zip(made, columns, counts, strict=True):
            skipped = torch.ones(len(places), dtype=torch.bool)
            skipped[places[:count].long()] = False
            sequence[skipped] = torch.nan
        return made

    def flagged(run: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
        def step(*given: Any) -> Tensor:
            made = run(*given)
            made[~given[place]] = torch.nan
            return made

        return step

    def product(*given: Any) -> Tensor:  # with a stream, which is there for all
        run = PLAIN.decode_linear
        return run(*given) if len(given) > 4 else flagged(run, 1)(*given)

    return dataclasses.replace(
        PLAIN,
        gate_up=packed,
        row_linear=in_place,
        attend=attend,
        decode_gate_up=flagged(PLAIN.decode_gate_up, 1),
        decode_linear=product,
        decode_attend=flagged(PLAIN.decode_attend, 3),
    )


def with_kernels(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> None:
    """Let layers on a CPU run with these."""
    monkeypatch.setattr("skipgpt.kernels.select.kernels_for", lambda *_: kernels)
    monkeypatch.setattr(decode, "decide", lambda *_: None)  # it is for devices without kernels


def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a layer packs in PyTorch after all."""

    def refuse(*_: object) -> None:
        raise AssertionError("packed in PyTorch")

    for name in ("pack_columns", "add_rows"):
        monkeypatch.setattr(run, name, refuse)


def routes(tokens: int, batch: int, keep: float, seed: int = 3) -> Forced:
    """The same routes whenever they are asked for."""
    made = torch.Generator().manual_seed(seed)
    return Forced({s: torch.rand(batch, tokens, generator=made) < keep for s in SITES})


def full(model: Any, inputs: Inputs, rule: Forced, kind: str) -> Tensor:
    """Logits of real tokens of one uncached forward."""
    with use_rule(model, rule), execution(model, kind):
        return model(**inputs.given, use_cache=False).logits[inputs.real]


@every_layout
@pytest.mark.parametrize("inputs", [ONE_ROW, LEFT_PADDED], ids=["one-row", "padded"])
def test_every_familys_prefill_equals_gated(
    family: str, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rule = routed(family), routes(11, len(inputs.pads), 0.6)
    wanted = full(model, inputs, rule, "gated")
    with_kernels(monkeypatch, poisoned())
    torch.testing.assert_close(full(model, inputs, rule, "sparse"), wanted, **CLOSE)


@every_layout
def test_every_familys_steps_equal_gated(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rule = routed(family), routes(11, 3, 0.5)
    wanted = full(model, LEFT_PADDED, rule, "gated")
    with_kernels(monkeypatch, poisoned())
    logits = in_steps(model, LEFT_PADDED, rule, DynamicCache(config=model.config))
    torch.testing.assert_close(logits[LEFT_PADDED.real], wanted, **CLOSE)


def in_steps(model: Any, inputs: Inputs, rule: Forced, cache: Any, first: int = 8) -> Tensor:
    """Logits [B, T] of a prefill of some tokens, and then one at a time."""
    logits, ends = [], [first, *range(first + 1, inputs.tokens + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        keep = {site: each[:, start:end] for site, each in rule.keep.items()}
        with use_rule(model, Forced(keep)):
            logits.append(model(**inputs.chunk(start, end), past_key_values=cache).logits)
    return torch.cat(logits, 1)


@every_family
def test_which_families_run_with_kernels_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, PLAIN)
    asking = any(needs_host_sync(layer) for layer in routed_layers(routed(family)))
    if family in WHOLE:
        assert not asking
    if family in {"bloom", "gpt2", "mixtral", "gemma2", "phi3", "deepseek_v3", "gpt_oss"}:
        assert asking


@every_batch
@pytest.mark.parametrize(("family", "keep"), [("llama", 0.5), ("qwen2", 0.5), ("llama", 0.0)])
def test_interpreted_prefill_equals_packing_in_pytorch(
    family: str, keep: float, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rule = routed(family), routes(11, len(inputs.pads), keep)
    wanted = full(model, inputs, rule, "sparse")
    with_kernels(monkeypatch, FAST)
    without_packing(monkeypatch)
    torch.testing.assert_close(full(model, inputs, rule, "sparse"), wanted, **CLOSE)


@pytest.mark.parametrize("cached", ["dynamic", "static"])
@pytest.mark.parametrize("inputs", [ONE_ROW, LEFT_PADDED], ids=["one-row", "padded"])
def test_interpreted_steps_equal_gated(
    inputs: Inputs, cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rule = routed("llama"), routes(11, len(inputs.pads), 0.5)
    wanted = full(model, inputs, rule, "gated")
    with_kernels(monkeypatch, FAST)
    without_packing(monkeypatch)
    new = DynamicCache(config=model.config)
    cache = new if cached == "dynamic" else StaticCache(model.config, max_cache_len=20)
    logits = in_steps(model, inputs, rule, cache)
    torch.testing.assert_close(logits[inputs.real], wanted, **CLOSE)


def test_chunks_of_several_tokens_see_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = routed("llama"), Inputs((0, 0), padded=False)
    rule = routes(11, 2, 0.5)
    wanted = full(model, inputs, rule, "gated")
    with_kernels(monkeypatch, FAST)
    for cache in (DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=20)):
        keep = [{s: each[:, a:b] for s, each in rule.keep.items()} for a, b in ((0, 6), (6, 11))]
        logits = []
        for part, (start, end) in zip(keep, ((0, 6), (6, 11)), strict=True):
            with use_rule(model, Forced(part)):
                logits.append(model(**inputs.chunk(start, end), past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(logits, 1)[inputs.real], wanted, **CLOSE)


def test_a_step_of_many_sequences_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipgpt.kernels.select.MOST_SEQUENCES", 2)
    model, inputs = routed("llama"), Inputs((0, 0, 0), padded=False, tokens=5)
    rule = routes(5, 3, 0.5)
    wanted = full(model, inputs, rule, "gated")
    with_kernels(monkeypatch, FAST)
    without_packing(monkeypatch)
    logits = in_steps(model, inputs, rule, DynamicCache(config=model.config), first=3)
    torch.testing.assert_close(logits[inputs.real], wanted, **CLOSE)


def test_stand_ins_run_for_skipped_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rule = routed("llama", stand_in=4), routes(11, 3, 0.5)
    wanted = full(model, LEFT_PADDED, rule, "gated")
    with_kernels(monkeypatch, PLAIN)
    without_packing(monkeypatch)
    torch.testing.assert_close(full(model, LEFT_PADDED, rule, "sparse"), wanted, **CLOSE)


class _NothingForTheHost(TorchDispatchMode):
    """Fails where a value of a tensor, or a shape that depends on one, is asked for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        flags = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if flags or name.startswith(self.WAITING):
            raise AssertionError(f"the host waits in {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stand_in", [0, 4])
@pytest.mark.parametrize("batch", [1, 3, 65])
def test_a_step_asks_nothing_of_the_host(
    batch: int, stand_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = routed("llama", stand_in=stand_in), torch.randint(1, 257, (batch, 5))
    cache = StaticCache(model.config, max_cache_len=20)
    with_kernels(monkeypatch, PLAIN)
    with use_rule(model, RandomRoutes(0.5)):
        model(ids, past_key_values=cache)
        with record_routing(model), _NothingForTheHost():
            model(ids[:, :1], past_key_values=cache)


def test_packing_in_pytorch_does_ask_the_host() -> None:
    model, ids = routed("llama"), torch.randint(1, 257, (2, 1))
    with (
        use_rule(model, RandomRoutes(0.5)),
        pytest.raises(AssertionError, match="the host waits in"),
        _NothingForTheHost(),
    ):
        model(ids, use_cache=False)


def test_where_kernels_do_not_suit_tokens_are_packed_in_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_kernels(monkeypatch, PLAIN)
    where, plain = (torch.device("cpu"), torch.float32), {"attention_mask": None}

    def suited(model: Any, given: dict[str, Any] = plain) -> tuple[bool, bool]:
        layer = routed_layers(model)[0]
        attention, mlp = (has_kernels(layer, each, *where, given) for each in MODULES)
        return attention, mlp

    model = routed("llama")
    assert suited(model) == (True, True)
    with torch.enable_grad():
        assert suited(model) == (False, False)
    with torch.autocast("cpu"):
        assert suited(model) == (False, False)
    assert suited(model.train()) == (False, False)
    assert suited(routed("llama", kv="skip")) == (False, True)
    assert suited(routed("llama", "eager")) == (False, True)
    assert suited(model.eval(), {"attention_mask": torch.zeros(1, 1, 1, 1)}) == (False, True)
    assert suited(routed("llama").double()) == (False, False)
    hooked = routed("llama")
    layer = routed_layers(hooked)[0]
    layer.self_attn.q_proj.register_forward_hook(lambda *_: None)
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert suited(hooked) == (False, False)
    for name in ("mlp", "mlp.act_fn", "self_attn"):
        whole = routed("llama")
        routed_layers(whole)[0].get_submodule(name).register_forward_hook(lambda *_: None)
        assert suited(whole) == (name != "self_attn", not name.startswith("mlp"))
    assert suited(routed("gpt2")) == (False, False)


def test_there_are_no_kernels_on_a_cpu_nor_for_other_dtypes() -> None:
    assert kernels_for(torch.device("cpu"), torch.float32) is None
    assert kernels_for(torch.device("meta"), torch.float32) is None
