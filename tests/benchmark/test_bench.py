"""What a benchmark measures, apart from time."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from skipgpt.benchmark import bench as bench_module
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.shapes import SHAPES, shape_config
from skipgpt.benchmark.subject import Subject, subject_of_shape
from skipgpt.benchmark.timing.phases import Cell, keep_and_union, traced
from skipgpt.cost import Forward, work
from skipgpt.errors import ConfigError
from skipgpt.model.loading.int8 import products_are_exact
from skipgpt.model.state import record_routing, routing_state
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import Step
from skipgpt.routing.decision import Decision, ModuleDecision, RandomRoutes, Site, Threshold
from skipgpt.system.device_profile import Machine, store_profile, typical


@pytest.fixture
def subject() -> Subject:
    return subject_of_shape("llama-tiny")


def test_the_dense_model_is_untouched_and_shares_its_weights(subject: Subject) -> None:
    assert not routed_layers(subject.dense)
    assert len(routed_layers(subject.routed)) == SHAPES["llama-tiny"]["num_hidden_layers"]
    ours = dict(subject.routed.named_parameters())
    assert all(ours[name] is p for name, p in subject.dense.named_parameters())


def test_an_execution_is_a_model_of_its_own(subject: Subject) -> None:
    gated = subject.executing("gated", RandomRoutes(0.5))
    state, other = routing_state(gated), routing_state(subject.routed)
    assert (state.execution, state.rule) == ("gated", RandomRoutes(0.5))
    assert (other.execution, other.rule) == ("auto", Threshold())
    with record_routing(gated) as trace:
        gated(subject.prompts(1, 4))
    assert len(trace.steps) == 1


def test_the_published_sizes() -> None:
    """Billions of parameters, as the names say."""
    from transformers import LlamaForCausalLM

    sizes = {}
    for name in SHAPES:
        with torch.device("meta"):
            sizes[name] = LlamaForCausalLM(shape_config(name)).num_parameters() / 1e9
    expected = {
        "smollm2-135m": 0.135,
        "llama-160m": 0.152,
        "llama-350m": 0.333,
        "llama-3.2-1b": 1.236,
        "llama-3.2-3b": 3.213,
        "llama-2-7b": 6.738,
        "llama-3.1-8b": 8.030,
        "llama-2-13b": 13.016,
        "llama-3.1-70b": 70.554,
    }
    assert {name: sizes[name] for name in expected} == pytest.approx(expected, abs=0.002)
    with pytest.raises(ConfigError, match="one of llama-tiny"):
        shape_config("llama-9000b")


def test_a_row_for_every_cell_and_execution(subject: Subject) -> None:
    grid = Grid(
        phases=("prefill", "decode", "generate"),
        batch_sizes=(1, 2),
        prompt_tokens=(8,),
        decode_tokens=3,
        sparsities=(0.0, 0.5),
        executions=("sparse", "gated"),
        repeats=2,
    )
    result = bench(subject, grid)
    cells = [(row.phase, row.batch_size, row.execution) for row in result.rows]
    assert cells == [
        (phase, batch, execution)
        for phase in grid.phases
        for batch in grid.batch_sizes
        for _ in grid.sparsities
        for execution in grid.executions
    ]
    for row in result.rows:
        assert row.prompt_tokens == 8
        assert row.new_tokens == (0 if row.phase == "prefill" else 3)
        assert row.efficiency == pytest.approx(row.speedup / row.ideal_speedup)
        assert row.dense_seconds > 0
        assert row.sparse_seconds > 0
    # Both executions of a cell ran the same routes.
    pairs = zip(result.rows[::2], result.rows[1::2], strict=True)
    assert all(a.sparsity == b.sparsity for a, b in pairs)
    assert all(row.sparsity == 0 for row in result.rows[0::4])
    assert all(row.sparsity > 0.2 for row in result.rows[2::4])
    assert [row.asked for row in result.rows[::2]] == 6 * [0.0, 0.5]
    assert {row.budget for row in result.rows} == {"modules"}
    assert {"subject", "routes", "dtype", "attention", "device", "torch"} <= result.facts.keys()
    assert json.loads(json.dumps(result.to_dict()))["rows"][0]["phase"] == "prefill"


def test_8_bit_weights_are_timed_beside_plain_ones(subject: Subject) -> None:
    if not products_are_exact():
        pytest.skip("8-bit products overflow on this CPU")
    flags = [p.requires_grad for p in subject.routed.parameters()]
    grid = Grid(
        ("prefill", "decode"),
        prompt_tokens=(8,),
        decode_tokens=3,
        sparsities=(0.5,),
        executions=("sparse",),
        repeats=2,
    )
    plain = bench(subject, grid)
    result = bench(subject, dataclasses.replace(grid, executions=("sparse", "sparse-int8")))
    assert [row.execution for row in result.rows] == 2 * ["dense-int8", "sparse", "sparse-int8"]
    for alone, *rows in zip(plain.rows, *(result.rows[n::3] for n in range(3)), strict=True):
        dense, sparse, both = rows
        assert (dense.sparsity, dense.union_sparsity, dense.efficiency) == (0.0, 0.0, 1.0)
        assert (sparse.int8_speedup, sparse.ideal_speedup) == (1.0, alone.ideal_speedup)
        assert both.int8_speedup == dense.speedup
        assert both.sparsity == sparse.sparsity
        assert both.efficiency == pytest.approx(both.speedup / both.ideal_speedup)
        skipping = both.ideal_speedup / both.int8_speedup
        # As many operations; bytes of weights shrink, those of caches and routers do not.
        near = 1e-6 if both.phase == "prefill" else 0.05
        assert skipping == pytest.approx(sparse.ideal_speedup, rel=near)
    assert [p.requires_grad for p in subject.routed.parameters()] == flags


def test_what_no_sparsity_changes_has_one_row_per_batch_size_and_length(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    kinds = ("sparse", "transformers", "compiled")
    if products_are_exact():
        kinds += ("sparse-int8",)
    grid = Grid(("prefill",), (1, 2), (4, 8), sparsities=(0.0, 0.5), executions=kinds, repeats=1)
    rows = bench(subject, grid).rows
    for kind in ("transformers", "compiled", *["dense-int8"][: len(kinds) - 3]):
        found = [row for row in rows if row.execution == kind]
        assert [(row.batch_size, row.prompt_tokens) for row in found] == [
            (1, 4),
            (1, 8),
            (2, 4),
            (2, 8),
        ]
        assert {(row.asked, row.budget) for row in found} == {(None, None)}
    for kind in ("sparse", *kinds[3:]):
        assert [row.asked for row in rows if row.execution == kind] == 4 * [0.0, 0.5]


def test_where_nothing_else_is_timed_what_no_sparsity_changes_is_timed_once(
    subject: Subject,
) -> None:
    grid = Grid(("prefill",), prompt_tokens=(4,), sparsities=(0.0, 0.5), repeats=1)
    rows = bench(subject, dataclasses.replace(grid, executions=("transformers",))).rows
    assert [row.execution for row in rows] == ["transformers"]


def test_who_cannot_be_held_in_8_bits_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipgpt.model.loading.int8.products_are_exact", lambda: False)
    kinds = ("sparse", "sparse-int8")
    grid = Grid(prompt_tokens=(8,), sparsities=(0.5,), executions=kinds, repeats=1)
    for phase, reason in (("prefill", "8-bit products overflow"), ("lora_step", "no gradient")):
        result = bench(subject_of_shape("llama-tiny"), dataclasses.replace(grid, phases=(phase,)))
        assert [row.execution for row in result.rows] == ["sparse"]
        assert any(each.startswith("sparse-int8 is left out: ") for each in result.left_out)
        assert all(reason in each for each in result.left_out)


def test_8_bit_models_hold_nothing_twice_but_what_is_8_bit(subject: Subject) -> None:
    if not products_are_exact():
        pytest.skip("8-bit products overflow on this CPU")
    plain = {p.data_ptr() for p in subject.routed.parameters()}
    models = [subject.executing(kind, RandomRoutes(0.5)) for kind in ("dense-int8", "sparse-int8")]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert one is other
        assert (one.dtype == torch.int8) == (one.data_ptr() not in plain)
    assert [routing_state(model).execution for model in models] == ["dense", "sparse"]


def decided(keep: list[list[bool]]) -> ModuleDecision:
    kept = torch.tensor(keep)
    return ModuleDecision.hard(kept, torch.zeros(kept.shape))


def test_shares_of_tokens_and_of_forwards() -> None:
    none, one, both = decided([[False], [False]]), decided([[True], [False]]), decided([[True]] * 2)
    steps = [Step({0: Decision(none, one)}, None), Step({0: Decision(one, both)}, None)]
    keep, ran = keep_and_union(steps)
    assert keep == {Site(0, "attn"): 0.25, Site(0, "mlp"): 0.75}
    assert ran == {Site(0, "attn"): 0.5, Site(0, "mlp"): 1.0}


@torch.inference_mode()
def test_the_ideal_of_each_phase(subject: Subject) -> None:
    model = subject.executing("sparse", RandomRoutes(0.5))
    ids = subject.prompts(2, 8)
    cells = {p: Cell(p, ids, 0 if p == "prefill" else 4) for p in ("prefill", "decode", "generate")}
    traces = {name: traced(model, cell.task(model)).steps for name, cell in cells.items()}
    assert [len(traces[name]) for name in cells] == [1, 4, 4]

    def ratio(of: str, forward: Forward, steps: list[Step]) -> float:
        dense, run = work(model, forward), work(model, forward, *keep_and_union(steps))
        return getattr(dense, of) / getattr(run, of)

    def ideal(name: str, steps: list[Step]) -> float:
        cell = cells[name]
        return cell.ideal(cell.cost(model), cell.cost(model, steps), prefill_share=0.25)

    first = ratio("flops", Forward(2, 8), traces["prefill"])
    rest = ratio("bytes", Forward(2, 1, cached=10), traces["decode"])
    assert ideal("prefill", traces["prefill"]) == pytest.approx(first)
    assert ideal("decode", traces["decode"]) == pytest.approx(rest)
    both = traces["prefill"] + traces["decode"]
    assert ideal("generate", both) == pytest.approx(1 / (0.25 / first + 0.75 / rest))


@torch.inference_mode()
def test_the_flops_of_each_phase(subject: Subject) -> None:
    model, ids = subject.routed, subject.prompts(2, 8)
    prompt, token = Forward(2, 8), Forward(2, 1, cached=10)
    flops = {}
    for phase in ("prefill", "decode", "generate"):
        cell = Cell(phase, ids, 0 if phase == "prefill" else 4)
        flops[phase] = cell.flops(cell.cost(model))
    assert flops["prefill"] == work(model, prompt).flops
    assert flops["decode"] == 4 * work(model, token).flops
    # The prompt gives the first of four tokens.
    assert flops["generate"] == flops["prefill"] + 3 * work(model, token).flops


@torch.inference_mode()
def test_every_run_of_a_task_takes_the_same_routes(subject: Subject) -> None:
    model = subject.executing("sparse", RandomRoutes(0.5))
    for phase in ("prefill", "decode", "generate"):
        task = Cell(phase, subject.prompts(1, 8), 4).task(model)
        seen = []
        for _ in range(2):
            given = task.prepare()
            with record_routing(model) as trace:
                task.run(given)
            seen.append([keep for step in trace.steps for keep in step.keeps()])
        assert len(seen[0]) == len(seen[1]) > 0
        assert all(map(torch.equal, *seen))


def seconds_of(monkeypatch: pytest.MonkeyPatch, **seconds: list[float]) -> None:
    """Let these be the seconds of each round."""
    monkeypatch.setattr(
        bench_module, "alternate", lambda tasks, *_: {name: seconds[name] for name in tasks}
    )


def test_ratios_are_medians_over_rounds(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_of(monkeypatch, dense=[4.0, 6.0, 9.0], gated=[8.0, 6.0, 3.0], sparse=[2.0, 2.0, 4.0])
    grid = Grid(("prefill",), prompt_tokens=(8,), sparsities=(0.5,), executions=("sparse", "gated"))
    result = bench(subject, grid)
    sparse, gated = result.rows
    # Dense over sparse is 2, 3, 2.25; gated over sparse 4, 3, 0.75.
    assert (sparse.speedup, sparse.over_gated) == (2.25, 3.0)
    assert sparse.speedup_range == (2.125, 2.625)
    assert (sparse.dense_seconds, sparse.sparse_seconds) == (6.0, 2.0)
    assert sparse.tokens_per_second == 8 / 2.0
    assert (gated.speedup, gated.over_gated) == (1.0, None)
    head, _, first, second = result.to_markdown().splitlines()[:4]
    assert head.endswith("| over gated |")
    assert first.endswith("| 3.00x |")
    assert second.endswith("|  |")
    assert result.to_terminal().splitlines()[0].endswith("over gated")


def test_without_gated_nothing_is_said_of_it(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_of(monkeypatch, dense=[4.0], sparse=[2.0])
    grid = Grid(("prefill",), prompt_tokens=(8,), sparsities=(0.5,), executions=("sparse",))
    result = bench(subject, grid)
    assert [row.over_gated for row in result.rows] == [None]
    assert "gated" not in result.to_markdown()


def test_facts_say_where_the_figures_of_the_machine_are_from(subject: Subject) -> None:
    device, grid = torch.device("cpu"), Grid(("prefill",), prompt_tokens=(4,), repeats=1)
    common = bench(subject, grid).facts["machine"]
    assert common == {"source": "typical", **dataclasses.asdict(typical(device))}
    store_profile(machine := Machine(2e11, 1e10, 1e-5, 3e-5), device, torch.float32)
    found = bench(subject, grid).facts["machine"]
    assert found == {"source": "measured by skipgpt profile", **dataclasses.asdict(machine)}
