import copy
import itertools
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from cases import (
    BATCHES,
    CLOSE,
    KEEP_ALL,
    LEFT_PADDED,
    ONE_ROW,
    base,
    every_layout,
    layouts,
    routed,
)
from reference import decoder_layers
from skipgpt.export import as_auto_model
from skipgpt.model.auto import register
from skipgpt.model.state import execution, routing_state, use_rule
from skipgpt.model.surgery import add_routers, routers
from zoo import family_name

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
# Transformers saves their experts under names of its own, as those of some layouts.
RENAMED = ("olmoe", "qwen2_moe", "qwen3_moe", "dots1", "mellum")


@every_layout
@torch.no_grad()
def test_a_copy_answers_alike_and_lives_its_own_life(family: str) -> None:
    model = routed(family)
    twin = copy.deepcopy(model)
    expected = model(**LEFT_PADDED.given).logits
    assert torch.equal(twin(**LEFT_PADDED.given).logits, expected)

    routing_state(twin).rule = KEEP_ALL
    for router in routers(twin).values():
        nn.init.normal_(next(router.parameters()))
    assert torch.equal(model(**LEFT_PADDED.given).logits, expected)
    assert (twin(**LEFT_PADDED.given).logits - expected)[LEFT_PADDED.real].abs().max() > 0.1


# Those of PhiMoE take our `mlp_router` along; such a model has to be saved with skipgpt's own
# `save` or `export_merged`.
@layouts(but={"phimoe"}, more=RENAMED)
@torch.no_grad()
def test_a_saved_model_loads_as_the_base_model_with_the_routers_beside_it(
    family: str, tmp_path: Path
) -> None:
    model, plain = routed(family), base(family)
    for each, folder in ((model, "routed"), (plain, "plain")):
        each.save_pretrained(tmp_path / folder)
    # Where transformers saves an MLP under its old name, as of Mixtral, it takes our key along.
    assert len(_keys(tmp_path / "routed") - _keys(tmp_path / "plain")) == 12

    _assert_same(_loaded(tmp_path / "routed", plain), plain)


@layouts(more=("phimoe", *RENAMED))
@torch.no_grad()
def test_a_merged_export_is_saved_and_loaded_by_the_auto_class_unchanged(
    family: str, tmp_path: Path
) -> None:
    register()
    model = routed(family, normalize=True)
    as_auto_model(model, None).save_pretrained(tmp_path)
    loaded = _loaded(tmp_path, model)
    assert loaded.config.model_type == f"skipgpt_{family_name(family)}"
    _assert_same(loaded, model)


@every_layout
@torch.no_grad()
def test_hidden_states_are_the_residual_stream_around_each_layer(family: str) -> None:
    model, inputs = routed(family), BATCHES["three-rows"]
    entered: list[Tensor] = []
    for layer in decoder_layers(model):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            plain = model(**inputs.given).logits
            entered.clear()
            output = model(**inputs.given, output_hidden_states=True)
        assert torch.equal(output.logits, plain)
        assert len(output.hidden_states) == 4
        for state, stream in zip(output.hidden_states, entered, strict=False):
            assert torch.equal(state, stream)
        for before, after in itertools.pairwise(output.hidden_states):
            assert (before - after).abs().max() > 0.1


@torch.no_grad()
def test_sampling_follows_the_seed() -> None:
    model = routed()
    how = GREEDY | {"do_sample": True, "temperature": 1.5}
    first, again, other = (_generate(model, how, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_layout
@torch.no_grad()
def test_embeddings_serve_as_input(family: str) -> None:
    model, given = routed(family), LEFT_PADDED.given
    expected = model(**given).logits
    embedded = model.get_input_embeddings()(given.pop("input_ids"))
    logits = model(inputs_embeds=embedded, **given).logits
    assert torch.equal(logits[LEFT_PADDED.real], expected[LEFT_PADDED.real])


@every_layout
@torch.no_grad()
def test_a_bfloat16_base_keeps_float32_routers_and_runs_in_both_executions(family: str) -> None:
    model = base(family).to(torch.bfloat16)
    expected = model(**ONE_ROW.given).logits
    add_routers(model)
    assert {p.dtype for r in routers(model).values() for p in r.parameters()} == {torch.float32}
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            with use_rule(model, KEEP_ALL):
                assert torch.equal(model(**ONE_ROW.given).logits, expected)
            assert model(**ONE_ROW.given).logits.dtype == torch.bfloat16


def _keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def _assert_same(loaded: nn.Module, model: nn.Module) -> None:
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for inputs in (ONE_ROW, LEFT_PADDED):
        # Memory that is aligned otherwise may be summed in another order.
        torch.testing.assert_close(
            loaded(**inputs.given).logits[inputs.real],
            model(**inputs.given).logits[inputs.real],
            **CLOSE,
        )


def _loaded(folder: Path, like: nn.Module) -> nn.Module:
    """What the auto class makes of a folder; a config does not save its kind of attention."""
    attention = like.config._attn_implementation
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


def _generate(model: nn.Module, how: dict[str, object], seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return model.generate(**LEFT_PADDED.prompt, **how)
