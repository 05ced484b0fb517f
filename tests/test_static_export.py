"""A static export is an ordinary, smaller model that does what the routed one does without modules.

Its logits equal those of the routed model that is forced to skip what was removed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import skipgpt
import zoo
from cases import CLOSE, ONE_ROW, SITES, base, families, routed
from command import skipgpt as command
from conftest import LONG, byte_tokenizer, examples, tiny_base
from runs import logits, rows, stopping_at, tiny_config, write_documents
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, LoraStage, RouterConfig
from skipgpt.data import load_blocks
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    StoppedError,
    UnsupportedModelError,
)
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.export import StaticExport, rebuild
from skipgpt.export.pairing import Pair, pair_rates, pair_up, sites_in
from skipgpt.export.rebuild import module_parameters, moves_whole_layers, smaller_model
from skipgpt.model.base import load_base
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers, routed_layers, routers, stand_ins
from skipgpt.removal.static import static_loss
from skipgpt.routing.decision import Forced, Site
from skipgpt.routing.router import set_constant
from skipgpt.training.stages import with_lora

CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)
M0, A1, M1, A2 = Site(0, "mlp"), Site(1, "attn"), Site(1, "mlp"), Site(2, "attn")
ODD = (
    "gpt_neox/sequential",
    "falcon/sequential",
    "stablelm",
    "smollm3",
    "granite",
    "glm4",
    "qwen2_moe/mixed",
    "mellum",
    "gpt2/upcast",
)
BY_PLACE = "gpt2"  # in the zoo with attention that is scaled by its place
SEQUENTIAL = ("llama", "qwen2", "gemma3_text", "olmo2", "phi3", "bloom", "mixtral", "gpt_oss")
PARALLEL = ("gpt_neox", "cohere2", "falcon/new", "phi", "stablelm/parallel")
SHORT = (*SEQUENTIAL, *PARALLEL, *ODD, "deepseek_v3")


def make(folder: Path, skipped: list[Site], base: nn.Module | None = None, **facts: Any) -> Path:
    """A checkpoint whose routers never keep these sites, and others for about half the tokens."""
    (base or tiny_base(initializer_range=0.2)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig(normalize=True, stand_in=facts.pop("stand_in", 0)))
    for stand_in in stand_ins(model).values():
        nn.init.normal_(stand_in.up.weight)
    for site in skipped:
        set_constant(routers(model)[site], -1.0)
    if facts.pop("lora", False):
        model = with_lora(model, tiny_config().lora_stage)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    save(model, folder / "checkpoint", describe(model, str(folder / "base"), **facts))
    write_documents(folder)
    return folder / "checkpoint"


def export(checkpoint: Path, **options: Any) -> StaticExport:
    """Beside the checkpoint, on the documents there."""
    data = [str(checkpoint.parent / "stories.jsonl")]
    out = checkpoint.parent / "small"
    return skipgpt.export_static(checkpoint, out, **{"data": data, "cutting": CUTTING} | options)


def forced(checkpoint: Path, removed: tuple[Site, ...]) -> Any:
    """The checkpoint's model as a context in which the sites never run."""
    model, _ = load(checkpoint, merge=True)
    return model, use_rule(model, Forced.without(list(removed)))


def plain(model: nn.Module, pairs: list[Pair], folder: Path) -> Any:
    """The smaller model, saved and loaded by transformers."""
    smaller_model(model, pairs).save_pretrained(folder)
    how = {"attn_implementation": model.config._attn_implementation}
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **how).eval()


def remade(model: nn.Module, rare: list[Site], folder: Path) -> tuple[Any, set[Site]]:
    """The smaller model without as many of these sites as can go, and those that are gone."""
    sites = [Site(layer.index, kind) for layer in routed_layers(model) for kind in ("attn", "mlp")]
    sizes, rates = module_parameters(model), {site: float(site not in rare) for site in sites}
    going = pair_rates(sites, sizes, rates, whole_layers=moves_whole_layers(model))
    pairs = pair_up(sites, [pair for pair, rate in going.items() if rate == 0], sizes, rates)
    return plain(model, pairs, folder), set(sites) - set(sites_in(pairs))


@families([n for n in zoo.ZOO if n != BY_PLACE] if LONG else SHORT)
def test_modules_of_different_layers_make_one_layer(family: str, tmp_path: Path) -> None:
    model = routed(family)
    static, gone = remade(model, [M0, A1, A2], tmp_path)
    assert gone == (set() if moves_whole_layers(model) else {M0, A1})
    with use_rule(model, Forced.without(list(gone))):
        expected = logits(model, ONE_ROW.ids)
    torch.testing.assert_close(logits(static, ONE_ROW.ids), expected, **CLOSE)


@families([n for n in zoo.ZOO if n != BY_PLACE] if LONG else SHORT)
def test_whole_layers_go_in_every_family(family: str, tmp_path: Path) -> None:
    model = routed(family)
    static, gone = remade(model, [A1, M1], tmp_path)
    assert gone == {A1, M1}
    with use_rule(model, Forced.without([A1, M1])):
        expected = logits(model, ONE_ROW.ids)
    torch.testing.assert_close(logits(static, ONE_ROW.ids), expected, **CLOSE)
    assert static.config.num_hidden_layers == 2


@families(PARALLEL)
def test_parallel_families_lose_whole_layers_only(family: str) -> None:
    assert moves_whole_layers(routed(family))


@families(SEQUENTIAL)
def test_sequential_families_lose_single_modules(family: str) -> None:
    assert not moves_whole_layers(routed(family))


@given(st.sets(st.sampled_from([Site(n, k) for n in range(4) for k in ("attn", "mlp")])))
@examples(8, 60)
def test_any_removal_is_exact(rare: set[Site]) -> None:
    model = routed_of_four_layers()
    with tempfile.TemporaryDirectory() as folder:
        static, gone = remade(model, sorted(rare), Path(folder))
    assert gone <= rare
    with use_rule(model, Forced.without(list(gone))):
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)
    assert static.num_parameters() + sum(
        module_parameters(model)[site] for site in gone
    ) == base_parameters(model)


def routed_of_four_layers() -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = zoo.build("gemma3_text", num_hidden_layers=4, layer_types=kinds, initializer_range=0.2)
    return add_routers(model).eval()


def base_parameters(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if "_router" not in n)


def ways_to_go(sites: list[Site], going: set[tuple[Site, Site]]) -> list[list[Site]]:
    """Every list of sites that is left when pairs of neighbours go."""
    if len(sites) < 2:
        return [sites]
    stays = [[sites[0], *rest] for rest in ways_to_go(sites[1:], going)]
    return stays + (ways_to_go(sites[2:], going) if (sites[0], sites[1]) in going else [])


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]), min_size=6, max_size=6),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.booleans(),
)
def test_what_stays_is_the_least_without_pairs_that_tokens_hardly_run(
    kept: list[float], sizes: list[int], whole: bool
) -> None:
    parameters, rates = (dict(zip(SITES, each, strict=True)) for each in (sizes, kept))
    pairs = pair_rates(SITES, parameters, rates, whole_layers=whole)
    assert len(pairs) == (3 if whole else 5)
    for (a, b), rate in pairs.items():
        run = parameters[a] * rates[a] + parameters[b] * rates[b]
        assert rate == pytest.approx(run / (parameters[a] + parameters[b]))
    going = {pair for pair, rate in pairs.items() if rate < 0.25}
    stays = sites_in(pair_up(SITES, going, parameters, rates))
    choices = [left for left in ways_to_go(SITES, going) if left]
    assert stays in choices
    assert sum(parameters[s] for s in stays) == min(
        sum(parameters[s] for s in left) for left in choices
    )


def test_of_equal_choices_the_module_that_more_tokens_keep_stays() -> None:
    ones = dict.fromkeys(SITES, 1)
    rates = dict.fromkeys(SITES, 1.0) | {A1: 0.01, M0: 0.02, A2: 0.04}
    assert pair_up(SITES, [(M0, A1), (A1, M1)], ones, rates) == [(0, 1), (2, 2)]
    every = pair_rates(SITES, ones, ones)
    assert pair_up(SITES, every, ones, dict.fromkeys(SITES, 0.0) | {A1: 0.03, A2: 0.02})[0][0] == 1


@pytest.mark.parametrize(
    ("family", "changes", "pairs", "expected"),
    [
        (
            "deepseek_v3",
            {"first_k_dense_replace": 2},
            [(0, 1), (2, 2)],
            {"first_k_dense_replace": 1},
        ),
        (
            "deepseek_v3",
            {"first_k_dense_replace": 1},
            [(1, 1), (2, 2)],
            {"first_k_dense_replace": 0},
        ),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 2},
            [(0, 1), (2, 2)],
            {"decoder_sparse_step": 1, "mlp_only_layers": [1]},
        ),
        (
            "mellum",
            {},
            [(0, 0), (1, 2)],
            {
                "layer_types": ["sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse"],
            },
        ),
        ("smollm3", {}, [(1, 2)], {"no_rope_layers": [0], "layer_types": ["full_attention"]}),
        ("gpt2/upcast", {}, [(0, 1), (2, 2)], {"n_layer": 2}),
    ],
)
def test_what_the_config_says_of_a_module_moves_with_it(
    family: str,
    changes: dict[str, Any],
    pairs: list[Pair],
    expected: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = add_routers(zoo.build(family, initializer_range=0.2, **changes)).eval()
    static = plain(model, pairs, tmp_path)
    assert {name: getattr(static.config, name) for name in expected} == expected
    with use_rule(model, Forced.without([s for s in SITES if s not in sites_in(pairs)])):
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)


def test_the_export_is_the_routed_model_without_what_was_removed(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1, A2], lora=True)
    result = export(checkpoint)
    assert result.removed == (M0, A1)
    assert result.kept_anyway == (A2,)
    assert result.layers == ((0, 1), (2, 2))
    assert (result.layers_before, result.layers_after) == (3, 2)

    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert type(static).__name__ == "LlamaForCausalLM"
    assert [layer.self_attn.layer_idx for layer in static.model.layers] == [0, 1]
    assert static.num_parameters() == result.parameters_after < result.parameters_before
    assert result.parameters_before == tiny_base().num_parameters()
    model, removed = forced(checkpoint, result.removed)
    with removed:
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)
    assert AutoTokenizer.from_pretrained(result.out)("cats").input_ids


def test_it_generates_what_the_routed_model_generates_without_the_modules(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    result = export(checkpoint)
    static = AutoModelForCausalLM.from_pretrained(result.out)
    prompt = rows(2, 7)
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    model, removed = forced(checkpoint, result.removed)
    with removed:
        expected = model.generate(prompt, **how)
    assert torch.equal(static.generate(prompt, **how), expected)


def test_losses_are_those_of_held_out_text(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1], lora=True)
    result = export(checkpoint)
    model, tokenizer = load(checkpoint, merge=True)
    blocks = subsample_rows(
        load_blocks([str(tmp_path / "stories.jsonl")], tokenizer, CUTTING).held_out, 128
    )
    with execution(model, "dense"):
        dense = perplexity(model, blocks)
    expected = {
        "dense": dense.nll_per_token,
        "routed": perplexity(model, blocks).nll_per_token,
        "static": static_loss(model, blocks, [M0, A1]),
    }
    assert result.losses == pytest.approx(expected, rel=1e-6)
    assert list(result.losses) == list(expected)
    assert len(set(result.losses.values())) == 3
    assert result.tokens == dense.tokens


def test_the_rest_is_healed_if_so_wished(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1], lora=True)
    heal = LoraStage(steps=12, learning_rate=1e-2, rank=4)
    data = [str(tmp_path / "stories.jsonl")]
    plain = export(checkpoint)
    torch.manual_seed(0)
    result = skipgpt.export_static(
        checkpoint, tmp_path / "healed", data=data, cutting=CUTTING, heal=heal
    )
    assert (result.removed, result.layers) == (plain.removed, plain.layers)
    assert result.losses["static"] == pytest.approx(plain.losses["static"], rel=1e-6)
    assert result.losses["healed"] < result.losses["static"] - 0.01
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert static.num_parameters() == plain.parameters_after
    blocks = load_blocks(data, AutoTokenizer.from_pretrained(result.out), CUTTING).held_out
    measured = static(subsample_rows(blocks, 128), labels=subsample_rows(blocks, 128)).loss.item()
    assert result.losses["healed"] == pytest.approx(measured, rel=1e-5)


def test_healing_follows_its_seed_and_is_written_down(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    heal, losses = LoraStage(steps=2, rank=4), []
    for seed in (0, 0, 1):
        out = tmp_path / f"healed-{len(losses)}"
        result = skipgpt.export_static(
            checkpoint,
            out,
            data=[str(tmp_path / "stories.jsonl")],
            cutting=CUTTING,
            heal=heal,
            seed=seed,
        )
        losses.append(result.losses["healed"])
        assert json.loads((out / "static_export.json").read_text())["heal"]["steps"] == 2
    assert losses[0] == losses[1] != losses[2]


def test_a_stop_while_healing_writes_nothing(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    with stopping_at(1, "lora"), pytest.raises(StoppedError, match="nothing was written"):
        skipgpt.export_static(
            checkpoint,
            tmp_path / "healed",
            data=[str(tmp_path / "stories.jsonl")],
            cutting=CUTTING,
            heal=LoraStage(steps=2, rank=4),
        )
    assert list((tmp_path / "healed").glob("*")) == []


def test_a_file_in_the_place_of_the_export_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    (tmp_path / "small").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a folder"):
        export(checkpoint)
    assert (tmp_path / "small").read_text() == "mine"


def test_an_mlp_that_no_token_runs_takes_an_attention_along(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M1])
    with pytest.raises(ConfigError, match="an attention and an MLP side by side"):
        export(checkpoint)
    result = export(checkpoint, keep_rate=0.3)
    attention = ({A1, A2} & set(result.removed)).pop()
    assert set(result.removed) == {M1, attention}
    attn, mlp = result.keep_rates[f"{attention.layer}.attn"], result.keep_rates["1.mlp"]
    assert mlp == 0
    layer = tiny_base().model.layers[0]
    sizes = [
        sum(p.numel() for part in (module, norm) for p in part.parameters())
        for module, norm in (
            (layer.self_attn, layer.input_layernorm),
            (layer.mlp, layer.post_attention_layernorm),
        )
    ]
    together = attn * sizes[0] / sum(sizes)
    assert together < 0.3 < attn
    # The others have more, or go with what has gone already.
    with pytest.raises(ConfigError, match=f"{together:.1%}"):
        export(checkpoint, keep_rate=together, overwrite=True)


def test_the_folder_says_what_was_removed(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]))
    record = json.loads((tmp_path / "small" / "static_export.json").read_text())
    assert record == result.to_dict()
    assert record["removed"] == ["0.mlp", "1.attn"]
    assert record["layers"] == [[0, 1], [2, 2]]


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    base = tiny_base(tie_word_embeddings=True, initializer_range=0.2)
    checkpoint = make(tmp_path, [A1, M1], base)
    result = export(checkpoint)
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert static.lm_head.weight is static.model.embed_tokens.weight
    model, removed = forced(checkpoint, result.removed)
    with removed:
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)


def test_bfloat16_is_written_as_bfloat16(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]), dtype="bfloat16")
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert {p.dtype for p in static.parameters()} == {torch.bfloat16}


def test_the_result_is_a_base_that_routers_fit_into(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]))
    model, _ = load_base(result.out)
    assert len(routers(add_routers(model))) == 4


FRESH = """
import sys
import torch
from transformers import AutoModelForCausalLM
folder, tokens, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    torch.save(model(torch.load(tokens)).logits, out)
assert "skipgpt" not in sys.modules
"""


def test_a_process_without_skipgpt_loads_it_without_remote_code(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    result = export(checkpoint)
    assert list((tmp_path / "small").glob("*.py")) == []
    torch.save(rows(3), tmp_path / "tokens.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, result.out, tmp_path / "tokens.pt", tmp_path / "logits.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model, removed = forced(checkpoint, result.removed)
    with removed:
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model), **CLOSE)


def test_nothing_below_the_rate_names_the_lowest_rates_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\d\.\w+ \d+\.\d%.*less than 5\.0%.*--keep-rate.*--spars"
    ):
        export(make(tmp_path, []))
    assert not (tmp_path / "small").exists()


def test_one_module_of_a_parallel_layer_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share a layer in this model"):
        export(make(tmp_path, [M0, A1], base("cohere2")))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_keep_rate_that_is_no_share_is_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_rate.*above 0, at most 1"):
        export(make(tmp_path, [M0, A1]), keep_rate=rate)


def test_layers_that_depend_on_their_place_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="scale_attn_by_inverse_layer_idx = true"):
        smaller_model(routed(BY_PLACE), [(0, 0), (2, 2)])


def test_a_list_by_layer_of_which_nothing_is_known_is_refused() -> None:
    model = routed()
    model.config.layer_scales = [1.0, 2.0, 3.0]
    with pytest.raises(UnsupportedModelError, match="layer_scales, a list with an entry for each"):
        smaller_model(model, [(0, 0), (2, 2)])


def test_a_model_whose_logits_would_differ_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    monkeypatch.setattr(
        "skipgpt.export.static.smaller_model",
        lambda model, _: rebuild.smaller_model(model, [(0, 0), (2, 2)]),
    )
    with pytest.raises(UnsupportedModelError, match="logits that differ by"):
        export(checkpoint)
    assert not (tmp_path / "small").exists()


def test_stand_ins_are_left_out(tmp_path: Path) -> None:
    with_them = export(make(tmp_path / "with", [M0, A1], stand_in=4))
    without = export(make(tmp_path / "without", [M0, A1]))
    assert with_them.parameters_after == without.parameters_after
    assert with_them.losses["static"] == pytest.approx(without.losses["static"])
    assert with_them.losses["routed"] != pytest.approx(without.losses["routed"])


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": "8bit"}))
    with pytest.raises(CheckpointError, match="a base held in 8bit"):
        export(checkpoint)


def test_a_folder_that_holds_a_model_is_refused_unless_overwriting(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    export(checkpoint)
    with pytest.raises(CheckpointError, match=r"already holds a model.*--overwrite"):
        export(checkpoint)
    export(checkpoint, overwrite=True)


def test_the_command_prints_what_the_library_returns(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    data = write_documents(tmp_path, "many.jsonl", count=100)
    arguments = ("export", checkpoint, "--static", "--data", data, "--block-size", 16, "--out")
    finished = command(*arguments, tmp_path / "small", "--json")
    assert finished.status == 0, finished.stderr
    assert finished.stderr == ""
    document = json.loads(finished.stdout)
    assert document == json.loads((tmp_path / "small" / "static_export.json").read_text())
    assert document["removed"] == ["0.mlp", "1.attn"]
    assert list(document["losses"]) == ["dense", "routed", "static"]
    for_people = command(*arguments, tmp_path / "again", "--heal-steps", 1).stdout
    assert ", healed " in for_people
    assert "removed 0.mlp, 1.attn\nlayers 3 -> 2, parameters " in for_people


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no form"),
        (("--merged", "--static", "--data", "stdlib"), "both forms"),
        (("--static",), "--static without --data"),
        (("--merged", "--data", "stdlib"), "--merged with --data"),
        (("--merged", "--heal-steps", "5"), "--merged with --keep-rate, --heal-steps"),
        (("--merged", "--seed", "3"), "--seed for --static alone"),
    ],
)
def test_the_command_wants_one_form_and_text_for_static_alone(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    finished = command("export", "checkpoint", *arguments, "--out", tmp_path / "out")
    assert finished.status == 2
    assert words in finished.stderr
