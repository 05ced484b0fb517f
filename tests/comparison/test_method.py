"""How a method is written down, and what settings it stands for."""

from __future__ import annotations

import dataclasses

import pytest

from runs import COMPARED, write_documents
from skipgpt.comparison.method import KINDS, TRAINED, Method, parse_method, split_methods
from skipgpt.comparison.setup import ComparisonSetup, prepare
from skipgpt.config import Placement, recipe
from skipgpt.errors import ConfigError
from tiny import byte_tokenizer, tiny_base

WRITTEN = {
    "router": Method("router"),
    "sleb+lora": Method("sleb", lora=True),
    "dense+lora": Method("dense", lora=True),
    "sleb+stand_in": Method("sleb", stand_in=True),
    "llm-drop+stand_in+lora": Method("llm-drop", lora=True, stand_in=True),
    "shortgpt+stand_in:router.stand_in=4": Method(
        "shortgpt", stand_in=True, settings=(("router.stand_in", "4"),)
    ),
    "router@paper": Method("router", recipe="paper"),
    "router+lora@paper": Method("router", lora=True, recipe="paper"),
    "router:router.input=module_input": Method(
        "router", settings=(("router.input", "module_input"),)
    ),
    "d-llm@paper:batch_size=3:seed=1": Method(
        "d-llm", recipe="paper", settings=(("batch_size", "3"), ("seed", "1"))
    ),
}
REFUSED = {
    "sleb+lora@paper": "expected settings of lora_stage after sleb+lora",
    "dense+lora:router_stage.alpha=2": "expected settings of lora_stage after dense+lora",
    "roter": "did you mean router?",
    "blockprunner": "did you mean blockpruner?",
    "shortgtp+lora": "did you mean shortgpt?",
    "xyz": "skipgpt compare --help",
    "": "expected one of dense, random, router",
    "router+lorra": "+stand_in and +lora may follow",
    "router+": "+stand_in and +lora may follow",
    "mod+lora": "+lora after dense, router, fit or a static method",
    "random+lora": "+lora after dense, router, fit or a static method",
    "router+stand_in": "router.stand_in sets the rank",
    "laco+stand_in": "+stand_in after a static method that changes no weights",
    "sleb+lora+lora": "+stand_in and +lora may follow",
    "sleb+stand_in@paper": "fit_stage.rounds after sleb+stand_in: nothing else",
    "sleb:router.stand_in=4": "sleb alone",
    "router:alpha": "got 'alpha'; expected key=value after the colon",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_method_is_read_and_written_alike(text: str) -> None:
    assert parse_method(text) == WRITTEN[text]
    assert str(WRITTEN[text]) == text
    assert parse_method(f" {text} ") == WRITTEN[text]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known_by_its_name_and_described(kind: str) -> None:
    assert parse_method(kind) == Method(kind)
    assert KINDS[kind]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_method_is_refused_with_the_nearest_one(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_method(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense,router", ["dense", "router"]),
        ("router,nonsense", ["router", "nonsense"]),
        (
            "router+lora:lora_stage.targets=q_proj,v_proj,sleb+lora@paper",
            ["router+lora:lora_stage.targets=q_proj,v_proj", "sleb+lora@paper"],
        ),
        ("router:router.stand_in=0,mod:seed=1", ["router:router.stand_in=0", "mod:seed=1"]),
    ],
)
def test_methods_by_commas_may_have_values_with_commas(text: str, expected: list[str]) -> None:
    assert split_methods(text) == expected


# What they stand for.


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> ComparisonSetup:
    folder = tmp_path_factory.mktemp("setup")
    tiny_base().save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    settings = COMPARED | {"router_stage.alpha": "5", "batch_size": "3"}
    data = [str(write_documents(folder))]
    return prepare(str(folder / "base"), data, "default", settings, placement=Placement())


def test_a_method_trains_by_the_recipe_and_settings_of_the_comparison(
    setup: ComparisonSetup,
) -> None:
    config = setup.config(Method("router"), 0.4, 7)
    assert (config.target_sparsity, config.seed, config.stages) == (
        *(0.4, 7),
        ("fit", "router"),
    )
    assert (config.recipe, config.router) == ("default", recipe("default").router)
    assert config.router_stage.alpha == 5
    assert config.batch_size == 3


def test_a_recipe_of_its_own_trains_on_as_much_as_the_others(setup: ComparisonSetup) -> None:
    ours, paper = (setup.config(parse_method(text), 0.25, 0) for text in ("router", "router@paper"))
    assert paper.recipe == "paper"
    assert paper.router == recipe("paper").router != ours.router
    stage = dataclasses.replace(recipe("paper").router_stage, steps=3)
    assert paper.router_stage == stage
    assert paper.data == ours.data
    assert paper.lora_stage == ours.lora_stage
    assert (paper.batch_size, paper.accumulation) == (ours.batch_size, ours.accumulation) == (3, 1)


def test_a_methods_own_settings_win(setup: ComparisonSetup) -> None:
    config = setup.config(parse_method("router:router_stage.alpha=9"), 0.25, 0)
    assert config.router_stage.alpha == 9
    config = setup.config(parse_method("coupled:router.kv=skip"), 0.25, 0)
    assert (config.router.decides, config.router.kv) == ("layer", "skip")


@pytest.mark.parametrize("kind", TRAINED)
def test_every_learned_kind_has_settings_that_exist(setup: ComparisonSetup, kind: str) -> None:
    config = setup.config(Method(kind), 0.25, 0)
    fitted = {"fit": ("fit",), "router": ("fit", "router"), "coupled": ("fit", "router")}
    assert config.stages == fitted.get(kind, ("joint",) if kind == "joint" else ("router",))
    decides = {"coupled": "layer", "d-llm": "layer", "mod": "layer", "sequence": "sequence"}
    assert config.router.decides == decides.get(kind, "module")
    assert config.router.kv == ("skip" if kind == "d-llm" else "dense")
    rival = kind in ("d-llm", "mod", "mod-d")
    assert config.router_stage.start == ("keep" if rival else recipe("default").router_stage.start)
    if rival:
        assert config.router.stand_in == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("router@papper", "paper or default"),
        ("router:router.inptu=x", "did you mean 'router.input'?"),
        ("router:router.input=x", "layer_input, module_input"),
        ("router:router_stage.steps=9", "a router_stage.steps of its own"),
        ("router:data.block_size=9", "one for all methods"),
        ("router:seed=7", "set it for the comparison"),
        ("router:stages=lora", "one for all methods"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(
    setup: ComparisonSetup, text: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        setup.config(parse_method(text), 0.25, 0)
    assert words in str(caught.value)
