"""Methods side by side: what is measured, on what, and what is never done twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import reference
from conftest import byte_tokenizer, tiny_base
from runs import COMPARED, compared, stopping_at, write_documents
from skipgpt.baselines.registry import STATIC
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.comparison import compare as comparing
from skipgpt.comparison import static, trained
from skipgpt.comparison.result import Comparison, Row
from skipgpt.comparison.setup import ComparisonSetup, prepare
from skipgpt.config import Placement, TrainConfig
from skipgpt.config.settings import from_dict
from skipgpt.errors import CheckpointError, ConfigError, StoppedError
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.state import use_rule
from skipgpt.removal.units import sites_of
from skipgpt.routing.decision import Forced
from skipgpt.training.run import train

SENSES = {"module", "attn", "mlp", "params", "flops"}
ALL = (
    *(
        "dense",
        "router",
        "router+lora",
        "router@paper",
        "joint",
        "coupled",
        "sequence",
        "random@paper",
    ),
    *("mod", "mod-d", "d-llm", "sleb", "llm-drop", "laco", "sleb+lora", "dense+lora"),
)
WHOLE = 1 / 3
"""A budget that is a whole number of layers and of modules: one of 3, two of 6."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    tiny_base(initializer_range=0.2).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    write_documents(folder)
    return folder / "base"


@pytest.fixture(scope="module")
def everything(base: Path) -> Comparison:
    """One comparison of every kind; its folder is `all` beside the base."""
    torch.manual_seed(0)
    return compared(base, base.parent / "all", *ALL, sparsities=(WHOLE,), draw=True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained or searched from now on, in order."""
    done: list[str] = []

    def counted(module: Any, name: str, label: str) -> None:
        original = getattr(module, name)

        def wrapper(*args: Any, **options: Any) -> Any:
            done.append(label)
            return original(*args, **options)

        monkeypatch.setattr(module, name, wrapper)

    counted(trained, "train", "train")
    counted(trained, "run_stage", "top k")
    counted(static, "run_stage", "heal")
    counted(static, "remove", "static")
    counted(trained, "random_routes", "random")
    counted(trained, "measure_at_sparsities", "dial")
    return done


def _by_method(comparison: Comparison) -> dict[str, Row]:
    return {row.method: row for row in comparison.rows}


# What is measured.


def test_rows_come_in_the_order_of_methods_with_other_evaluations_beside(
    everything: Comparison,
) -> None:
    assert [row.method for row in everything.rows] == [
        *("dense", "router", "router+lora", "router@paper", "router@paper (sampled)", "joint"),
        *("coupled", "sequence", "random@paper", "mod", "mod (causal)", "mod-d", "mod-d (causal)"),
        *("d-llm", "sleb", "llm-drop", "laco", "sleb+lora", "dense+lora"),
    ]


def test_every_row_has_the_promised_keys_and_finite_values(everything: Comparison) -> None:
    document = json.loads(json.dumps(everything.to_dict(), allow_nan=False))
    for row in document["rows"]:
        assert {"method", "sparsity", "nll_per_token", "excess_nll", "flops"} <= row.keys()
        assert row["sparsity"].keys() == SENSES
        assert row["nll_per_token"] > 0
    facts = document["facts"]
    assert facts["tokens"] > 0
    assert facts["settings"]["router_stage"]["steps"] == 3


def test_dense_is_the_measure_of_all(everything: Comparison) -> None:
    dense = _by_method(everything)["dense"]
    assert dense.excess_nll == 0
    assert set(dense.sparsity.values()) == {0.0}
    assert dense.flops == everything.facts["dense_flops"]
    assert dense.nll_per_token == everything.facts["dense_nll_per_token"]
    for row in everything.rows:
        assert row.excess_nll == row.nll_per_token - dense.nll_per_token
        assert row.flops == pytest.approx(dense.flops * (1 - row.sparsity["flops"]))


def test_every_method_is_near_its_budget(everything: Comparison) -> None:
    for name, row in _by_method(everything).items():
        if name.startswith("dense"):
            assert row.sparsity["module"] == 0
        elif name in STATIC or name == "sleb+lora":
            assert row.sparsity["module"] == pytest.approx(WHOLE)
        elif name == "router@paper (sampled)" or name.startswith("mod"):
            # Drawn anew at a threshold of its own; and of three layers MoD leaves two dense.
            assert 0.1 < row.sparsity["module"] < 0.6, name
        elif name != "sequence":  # a few rows decide: whole rows are too coarse
            assert row.sparsity["module"] == pytest.approx(WHOLE, abs=0.12), name


def test_the_whole_comparison_lies_in_its_folder(base: Path, everything: Comparison) -> None:
    out = base.parent / "all"
    names = {"comparison.json", "comparison.md", "comparison.svg", "cache", "runs", "searches"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "comparison.json").read_text()) == json.loads(
        json.dumps(everything.to_dict())
    )
    assert (out / "comparison.md").read_text() == everything.to_markdown() + "\n"
    picture = (out / "comparison.svg").read_text()
    assert picture.count("<svg") == 1
    for row in everything.rows:
        assert row.method == "dense" or f"<!-- {row.method} -->" in picture


def test_router_is_what_train_makes_of_the_same_settings(
    base: Path, everything: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _by_method(everything)["router"]
    config = json.loads((Path(str(row.checkpoint)) / "run.json").read_text())["config"]
    monkeypatch.setattr("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5))
    data = [str(base.parent / "stories.jsonl")]
    result = train(str(base), data, tmp_path / "out", from_dict(TrainConfig, config))
    assert result.held_out["router"].nll_per_token == row.nll_per_token
    assert result.held_out["router"].sparsity == row.sparsity
    assert result.held_out["dense"].nll_per_token == everything.facts["dense_nll_per_token"]
    assert result.held_out["dense"].tokens == everything.facts["tokens"]


def test_a_checkpoint_lies_where_its_row_says(everything: Comparison) -> None:
    rows = _by_method(everything)
    stages = {
        "router": ("fit", "router"),
        "router+lora": ("fit", "router", "lora"),
        "joint": ("joint",),
    }
    for name, expected in stages.items():
        info = read_info(str(rows[name].checkpoint))
        assert info.stages == expected
        assert info.target_sparsity == WHOLE
        assert info.sparsity == rows[name].sparsity
    assert read_info(str(rows["d-llm"].checkpoint)).router.kv == "skip"
    assert read_info(str(rows["coupled"].checkpoint)).router.decides == "layer"
    assert rows["sleb"].checkpoint is rows["dense"].checkpoint is None


def test_random_routes_skip_as_much_as_the_routers_they_copy(everything: Comparison) -> None:
    rows = _by_method(everything)
    for sense in ("module", "attn", "mlp"):
        ours, theirs = (rows[f"{kind}@paper"].sparsity[sense] for kind in ("random", "router"))
        assert ours == pytest.approx(theirs, abs=0.12)
    assert rows["random@paper"].nll_per_token != rows["router@paper"].nll_per_token


def test_whole_layers_skip_attention_and_mlp_alike(everything: Comparison) -> None:
    rows = _by_method(everything)
    for name in ("coupled", "d-llm", "mod", "mod (causal)", "sleb"):
        assert rows[name].sparsity["attn"] == rows[name].sparsity["mlp"]
    assert rows["router@paper"].sparsity["attn"] != rows["router@paper"].sparsity["mlp"]


@pytest.mark.parametrize("name", ["router", "router+lora", "joint"])
def test_closeness_is_to_the_base_without_routers_and_lora(
    name: str, base: Path, everything: Comparison
) -> None:
    row = _by_method(everything)[name]
    model, _ = load(str(row.checkpoint))
    plain = AutoModelForCausalLM.from_pretrained(base)
    kl, agreement, _ = reference.closeness(plain, model, _setup(base).held_out())
    assert row.kl_to_dense == pytest.approx(kl, rel=1e-3)
    assert row.agreement == pytest.approx(agreement, abs=1e-9)


def test_every_row_has_closeness_and_only_dense_is_dense(everything: Comparison) -> None:
    dense, *rows = everything.rows
    assert (dense.kl_to_dense, dense.agreement) == (0, 1)
    for row in rows:
        assert (row.kl_to_dense or 0) > 0, row.method
        assert 0 <= (-1 if row.agreement is None else row.agreement) <= 1, row.method
    healed, removed = (_by_method(everything)[name] for name in ("sleb+lora", "sleb"))
    assert healed.kl_to_dense != removed.kl_to_dense


def test_layers_that_were_merged_are_compared_with_the_base_as_it_was(
    base: Path, everything: Comparison
) -> None:
    setup, row = _setup(base), _by_method(everything)["laco"]
    model = setup.routed()
    order = STATIC["laco"].order(model, setup.search_text(), 1)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with use_rule(model, Forced.without(sites_of(order))):
        kl, agreement, _ = reference.closeness(plain, model, setup.held_out())
    assert row.kl_to_dense == pytest.approx(kl, rel=1e-3)
    assert row.agreement == pytest.approx(agreement, abs=1e-9)


# Static methods.


@pytest.mark.parametrize("name", ["sleb", "llm-drop"])
def test_static_methods_are_exact_at_whole_numbers_and_linear_between(
    name: str, base: Path, tmp_path: Path
) -> None:
    kind = STATIC[name]
    units = 3 if kind.units == "layers" else 6
    grid = (1 / units, 1.25 / units, 1.5 / units, 2 / units)
    found = compared(base, tmp_path / "out", "dense", name, sparsities=grid)
    _, *rows = found.rows
    setup = _setup(base)
    for row, count in ((rows[0], 1), (rows[3], 2)):
        model = setup.routed()
        order = kind.order(model, setup.search_text(), count)
        with use_rule(model, Forced.without(sites_of(order))):
            measured = perplexity(model, setup.held_out())
        assert row.nll_per_token == measured.nll_per_token
        shares = ("module", "attn", "mlp")
        assert [row.sparsity[n] for n in shares] == [measured.sparsity[n] for n in shares]
        # Gone for good, attention takes its keys and values along.
        assert row.sparsity["flops"] >= measured.sparsity["flops"]
        assert row.note == f"{count} {kind.units} removed"
    for row, share in ((rows[1], 0.25), (rows[2], 0.5)):
        assert row.nll_per_token == pytest.approx(_between(rows, "nll_per_token", share))
        for name in ("flops", "kl_to_dense", "agreement"):
            assert getattr(row, name) == pytest.approx(_between(rows, name, share))
        for sense, value in row.sparsity.items():
            low, high = rows[0].sparsity[sense], rows[3].sparsity[sense]
            assert value == pytest.approx(low + share * (high - low))
        assert row.note == f"between 1 and 2 {kind.units} removed"
        assert row.sparsity["module"] == pytest.approx(row.target)


def _between(rows: list[Row], name: str, share: float) -> float:
    low, high = getattr(rows[0], name), getattr(rows[3], name)
    return low + share * (high - low)


def _setup(base: Path) -> ComparisonSetup:
    data = [str(base.parent / "stories.jsonl")]
    return prepare(str(base), data, "default", dict(COMPARED), placement=Placement())


def test_healing_trains_lora_around_each_whole_removal_next_to_the_budget(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed: list[tuple[Any, dict[str, torch.Tensor]]] = []
    original = static.run_stage

    def watched(model: Any, *args: Any) -> Any:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        healed.append((original(model, *args), before))
        return healed[-1][0]

    monkeypatch.setattr(static, "run_stage", watched)
    found = compared(base, tmp_path / "out", "sleb+lora", "dense+lora", sparsities=(0.25,))
    assert [row.note for row in found.rows] == ["between 0 and 1 layers removed", ""]
    assert [row.sparsity["module"] for row in found.rows] == [pytest.approx(0.25), 0]
    (whole,) = compared(base, tmp_path / "out", "sleb+lora", sparsities=(WHOLE,)).rows
    mixed, dense = (row.nll_per_token for row in found.rows)
    assert mixed == pytest.approx(dense + 0.75 * (whole.nll_per_token - dense))
    assert len(healed) == 4
    for model, before in healed:
        after = dict(model.base_model.model.named_parameters())
        plain = {name.replace(".base_layer", ""): p for name, p in after.items()}
        assert all(torch.equal(plain[name], tensor) for name, tensor in before.items())
        assert any(p.any() for name, p in after.items() if "lora_B" in name)


# Nothing is done twice.


def test_a_second_call_runs_nothing_again(
    base: Path, everything: Comparison, made: list[str]
) -> None:
    again = compared(base, base.parent / "all", *ALL, sparsities=(WHOLE,))
    assert made == []
    assert again == everything


def test_one_more_method_costs_one_method(
    base: Path, everything: Comparison, tmp_path: Path, made: list[str]
) -> None:
    out = Path(shutil.copytree(base.parent / "all", tmp_path / "out"))
    more = compared(base, out, "router", "shortgpt", "sleb", "router+lora", sparsities=(WHOLE,))
    assert made == ["static"]
    ours, rows = _by_method(more), _by_method(everything)
    assert list(ours) == ["router", "shortgpt", "sleb", "router+lora"]
    for name in ("router", "sleb", "router+lora"):  # checkpoints moved along with their folder
        moved, first = ours[name], rows[name]
        assert replace(moved, checkpoint=None) == replace(first, checkpoint=None)
        assert moved.checkpoint is None or Path(moved.checkpoint).is_relative_to(out)


def test_what_stands_on_routers_that_were_not_asked_for_trains_them_once(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    found = compared(base, tmp_path / "out", "router+lora", "random")
    assert [row.method for row in found.rows] == ["router+lora", "random"]
    assert made == ["train", "train", "random"]
    compared(base, tmp_path / "out", "router")
    assert made == ["train", "train", "random"]


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"router_stage.static_tokens": 32}},
        {"settings": {"data.block_size": 15}},
        {"recipe": "paper"},
        {"sparsities": (0.3,)},
        {"budget": "flops"},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_whatever_changes_a_method_makes_it_anew(
    base: Path, tmp_path: Path, made: list[str], changed: dict[str, Any]
) -> None:
    compared(base, tmp_path / "out", "sleb")
    compared(base, tmp_path / "out", "sleb", **changed)
    assert made == ["static"] * 2
    compared(base, tmp_path / "out", "sleb")
    compared(base, tmp_path / "out", "sleb", **changed)
    assert made == ["static"] * 2


def test_a_setting_of_training_makes_routers_anew(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    first, second, third = (
        compared(base, tmp_path / "out", "router", settings=settings).rows[0]
        for settings in ({}, {"router_stage.learning_rate": 0.5}, {})
    )
    assert made == ["train", "train"]
    assert first == third != second
    assert first.checkpoint != second.checkpoint


@pytest.mark.parametrize("what", ["base", "config", "text"])
def test_another_base_or_text_of_the_same_name_makes_everything_anew(
    what: str, base_folder: Path, tmp_path: Path, made: list[str]
) -> None:
    first = compared(base_folder, tmp_path / "out", "dense", "sleb")
    if what == "base":
        tiny_base(seed=5).save_pretrained(base_folder)
    elif what == "config":
        config = json.loads((base_folder / "config.json").read_text())
        (base_folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    else:
        write_documents(tmp_path, count=50)
    second = compared(base_folder, tmp_path / "out", "dense", "sleb")
    assert made == ["static"] * 2
    for row, other in zip(first.rows, second.rows, strict=True):
        assert row.nll_per_token != other.nll_per_token


def test_a_checkpoint_that_was_deleted_is_made_again(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    (first,) = compared(base, tmp_path / "out", "router").rows
    shutil.rmtree(str(first.checkpoint))
    (second,) = compared(base, tmp_path / "out", "router").rows
    assert made == ["train", "train"]
    assert second.nll_per_token == first.nll_per_token
    assert load(str(second.checkpoint))


def test_what_was_finished_before_a_failure_is_kept(
    base: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConfigError("trying", got="a failure", expected="none")

    with monkeypatch.context() as patch:
        patch.setattr(comparing.static, "remove", fail)
        with pytest.raises(ConfigError, match="a failure"):
            compared(base, tmp_path / "out", "router", "sleb")
    assert made == ["train"]
    compared(base, tmp_path / "out", "router", "sleb", sparsities=(0.25,))
    assert made == ["train", "static"]


def test_a_comparison_is_found_again_from_another_folder(
    base: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compared(base, Path("out"), "router")
    monkeypatch.chdir(base.parent)
    compared(base, tmp_path / "out", "router")
    assert made == ["train"]


def test_settings_of_healing_make_no_difference_to_what_is_not_healed(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    compared(base, tmp_path / "out", "router", "router+lora", "joint")
    assert made == ["train"] * 3
    longer = {"lora_stage.steps": 3}
    compared(base, tmp_path / "out", "router", "router+lora", "joint", settings=longer)
    assert made == ["train"] * 5


def test_healing_with_other_settings_heals_the_same_routers(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    names = ("router+lora", "router+lora:lora_stage.alpha=8")
    first, second = compared(base, tmp_path / "out", *names).rows
    assert made == ["train"] * 3
    assert first.nll_per_token != second.nll_per_token


def test_a_checkpoint_that_was_finished_before_its_row_is_measured_again_and_not_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = compared(base, tmp_path / "out", "router").rows
    shutil.rmtree(tmp_path / "out" / "cache")
    monkeypatch.setattr("skipgpt.training.run.run_stage", None)
    (second,) = compared(base, tmp_path / "out", "router").rows
    assert replace(second, seconds=first.seconds) == first


def test_a_row_of_an_earlier_version_is_read_without_closeness(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    first = compared(base, tmp_path / "out", "sleb")
    (cached,) = (tmp_path / "out" / "cache").iterdir()
    kept = [
        {name: value for name, value in row.items() if name not in ("kl_to_dense", "agreement")}
        for row in json.loads(cached.read_text())
    ]
    cached.write_text(json.dumps(kept))
    second = compared(base, tmp_path / "out", "sleb")
    assert made == ["static"]
    assert second.rows == (replace(first.rows[0], kl_to_dense=None, agreement=None),)


def test_a_damaged_row_is_made_anew(base: Path, tmp_path: Path, made: list[str]) -> None:
    first = compared(base, tmp_path / "out", "sleb")
    (row,) = (tmp_path / "out" / "cache").iterdir()
    row.write_text("[{")
    second = compared(base, tmp_path / "out", "sleb")
    assert made == ["static"] * 2
    assert second.rows[0].nll_per_token == first.rows[0].nll_per_token


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (("router", "mod"), {"sparsities": (0.25, 0.5)}, "at most 0.333"),
        (("router", "laco"), {"sparsities": (0.9,)}, "at most 0.667"),
        (
            ("router+lora",),
            {"settings": {"lora_stage.targets": "nope"}},
            "targets that are no linear layers of this model: nope",
        ),
        (("router",), {"seeds": (0, 2**32)}, "below 4294967296"),
    ],
    ids=str,
)
def test_what_the_last_method_cannot_do_is_said_before_the_first_runs(
    methods: tuple[str, ...],
    options: dict[str, Any],
    words: str,
    base: Path,
    tmp_path: Path,
    made: list[str],
) -> None:
    with pytest.raises(ConfigError, match=words):
        compared(base, tmp_path / "out", *methods, **options)
    assert made == []


def test_a_file_in_the_place_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="got a file; expected a folder"):
        compared(base, tmp_path / "out", "dense")
    assert (tmp_path / "out").read_text() == "mine"


# Budgets, seeds, dial.


def test_seeds_give_rows_of_their_own_where_something_is_random(base: Path, tmp_path: Path) -> None:
    found = compared(base, tmp_path / "out", "dense", "router", "sleb", seeds=(0, 1))
    assert [(row.method, row.seed) for row in found.rows] == [
        *(("dense", 0), ("router", 0), ("router", 1), ("sleb", 0)),
    ]
    _, router, sleb = found.lines()
    first, second = (row.excess_nll for row in router.rows)
    assert first != second
    assert router.excess == pytest.approx((first + second) / 2)
    assert router.spread == pytest.approx(abs(first - second) / 2)
    assert sleb.spread == 0


def test_the_dial_reads_every_checkpoint_at_other_budgets(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    options: dict[str, Any] = {"dial": (0.0, 0.5)}
    found = compared(base, tmp_path / "out", "router", "sleb", "random", **options)
    assert [(row.method, row.target) for row in found.rows] == [
        ("router", 0.25),
        ("router (dial of 0.25)", 0.0),
        ("router (dial of 0.25)", 0.5),
        ("sleb", 0.25),
        ("random", 0.25),
    ]
    router, closed, half, *_ = found.rows
    assert (closed.sparsity["module"], closed.excess_nll) == (0, pytest.approx(0, abs=1e-6))
    assert half.sparsity["module"] == pytest.approx(0.5, abs=0.1)
    assert closed.checkpoint == half.checkpoint == router.checkpoint
    model, _ = load(str(router.checkpoint), sparsity=0.5)
    assert half.nll_per_token == perplexity(model, _setup(base).held_out()).nll_per_token
    before = list(made)
    assert compared(base, tmp_path / "out", "router", "sleb", "random", **options) == found
    assert made == before


def test_several_budgets_come_in_order(base: Path, tmp_path: Path) -> None:
    found = compared(base, tmp_path / "out", "dense", "sleb", "llm-drop", sparsities=(0.5, 0.2))
    assert [(row.method, row.target) for row in found.rows] == [
        *(("dense", 0.0), ("sleb", 0.5), ("sleb", 0.2), ("llm-drop", 0.5), ("llm-drop", 0.2)),
    ]


def test_what_skips_nothing_is_trained_once_for_all_budgets(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    found = compared(base, tmp_path / "out", "dense", "dense+lora", sparsities=(0.25, 0.5))
    assert made == ["heal"]
    assert [(row.method, row.target) for row in found.rows] == [("dense", 0), ("dense+lora", 0)]


def test_sampled_routes_are_the_same_routers_drawn_anew(base: Path, everything: Comparison) -> None:
    rows = _by_method(everything)
    row, sampled = rows["router@paper"], rows["router@paper (sampled)"]
    assert (sampled.checkpoint, sampled.seed) == (row.checkpoint, row.seed)
    assert sampled.nll_per_token != row.nll_per_token
    assert "drawn anew" in sampled.note


# What is refused.


def test_a_wrong_last_method_is_found_before_the_first_one_runs(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    for wrong in ("roter", "router@papper", "router:alhpa=3"):
        with pytest.raises(ConfigError):
            compared(base, tmp_path / "out", "router", wrong)
    assert made == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "asked", "unit"),
    [
        ("default", {}, None, "flops"),
        ("paper", {}, None, "modules"),
        ("default", {"budget": "modules"}, None, "modules"),
        ("default", {"budget": "modules"}, "flops", "flops"),
    ],
)
def test_budgets_are_in_the_unit_of_the_settings_or_the_recipe(
    base: Path, tmp_path: Path, recipe: str, settings: dict[str, Any], asked: Any, unit: str
) -> None:
    compared(base, tmp_path, "dense")  # writes the text
    found = comparing.compare(
        str(base),
        [str(base.parent / "stories.jsonl")],
        tmp_path / "out",
        ["sleb"],
        recipe=recipe,
        budget=asked,
        settings=COMPARED | settings,
    )
    assert found.facts["budget"] == unit
    words = {"flops": "25.0% of FLOPs", "modules": "25.0% of modules"}
    assert words[unit] in found.to_terminal()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsities": ()}, "nothing to compare"),
        ({"seeds": ()}, "nothing to compare"),
        ({"sparsities": (0.25, 25)}, "0 to 0.95"),
        ({"dial": (1.5,)}, "0 to 0.95"),
        ({"budget": "time"}, "expected modules or flops"),
        ({"settings": {"budget": "time"}}, "expected modules or flops"),
        ({"settings": {"target_sparsity": 0.4}}, "--sparsity"),
        ({"recipe": "papper"}, "paper or default"),
        ({"settings": {"alhpa": 1}}, "alpha"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    base: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(base, tmp_path / "out", "router", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_method_is_nothing_to_compare(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compared(base, tmp_path / "out")


def test_an_interrupted_training_goes_on(base: Path, tmp_path: Path, made: list[str]) -> None:
    (straight,) = compared(base, tmp_path / "straight", "router").rows
    with stopping_at(2), pytest.raises(StoppedError):
        compared(base, tmp_path / "out", "router")
    (resumed,) = compared(base, tmp_path / "out", "router").rows
    assert resumed.nll_per_token == straight.nll_per_token


@pytest.mark.parametrize("method", ["sleb+lora", "dense+lora", "mod"])
def test_an_interrupted_method_of_another_kind_goes_on_too(
    method: str, base: Path, tmp_path: Path, made: list[str]
) -> None:
    straight = compared(base, tmp_path / "straight", method).rows
    stage = "lora" if method.endswith("+lora") else "router"
    refused = pytest.raises(StoppedError, match="the same command goes on from it")
    with stopping_at(1, stage), refused:
        compared(base, tmp_path / "out", method)
    assert list((tmp_path / "out").rglob("checkpoint-1"))
    resumed = compared(base, tmp_path / "out", method).rows
    assert [row.nll_per_token for row in resumed] == [row.nll_per_token for row in straight]
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


def test_a_schedule_that_does_not_exist_is_found_before_anything_runs(
    base: Path, tmp_path: Path, made: list[str]
) -> None:
    with pytest.raises(ConfigError, match="reading schedule"):
        compared(base, tmp_path / "out", "router", "coupled:router_stage.schedule=zigzag")
    assert made == []


def test_the_recipe_paper_is_sampled_after_healing_too(base: Path, tmp_path: Path) -> None:
    rows = compared(base, tmp_path / "out", "router+lora@paper").rows
    assert [row.method for row in rows] == ["router+lora@paper", "router+lora@paper (sampled)"]
