from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import BATCHES, CLOSE, KEEP_ALL, base, conformance, every_layout, routed
from reference import decoder_layers, gating, keeps
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routers
from zoo import family_name

Kept = dict[tuple[int, str], Tensor]


@conformance
@torch.no_grad()
def test_kv_skip_equals_the_untouched_base_with_the_keys_of_skipped_tokens_masked(
    family: str,
) -> None:
    _compare(family, "three-rows-left-padded")


@pytest.mark.parametrize("batch", sorted(BATCHES.keys() - {"three-rows-left-padded"}))
@every_layout
@torch.no_grad()
def test_kv_skip_equals_the_masked_base_in_a_batch_of_every_shape(family: str, batch: str) -> None:
    _compare(family, batch)


def _compare(family: str, batch: str) -> None:
    """Gates by hooks on modules, keys by hooks on attention's masks; nothing of ours runs."""
    plain, model = base(family, "eager"), routed(family, "eager", kv="skip")
    given, real = BATCHES[batch].given, BATCHES[batch].real
    at, kept = routers(model), {}

    def gate(layer: int, module: str, state: Tensor) -> Tensor:
        kept[layer, module] = keeps(at[layer, module], state)
        return kept[layer, module].float()

    with gating(plain, gate), _masking(plain, FAMILIES[family_name(family)].attn, kept):
        expected = plain(**given, use_cache=False).logits[real]
    for kind in ("gated", "sparse"):
        with execution(model, kind):
            actual = model(**given, use_cache=False).logits[real]
        torch.testing.assert_close(actual, expected, **CLOSE)
    with gating(plain, gate):
        seen = plain(**given, use_cache=False).logits[real]
    assert (seen - expected).abs().max() > 1e-3, "the masked keys do not matter"


@every_layout
@torch.no_grad()
def test_kv_skip_with_all_kept_equals_the_base(family: str) -> None:
    inputs = BATCHES["three-rows-left-padded"]
    expected = base(family, "eager")(**inputs.given, use_cache=False).logits[inputs.real]
    model = routed(family, "eager", kv="skip")
    for kind in ("gated", "sparse"):
        with use_rule(model, KEEP_ALL), execution(model, kind):
            actual = model(**inputs.given, use_cache=False).logits[inputs.real]
        # Masks are taken apart and put together, which moves the last bits of a product.
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


@contextmanager
def _masking(plain: nn.Module, attention: str, kept: Kept) -> Any:
    """Inside the block no query sees another token's key where that token skips attention."""
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder_layers(plain)):
            hook = _hiding(index, kept)
            module = getattr(layer, attention)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _hiding(index: int, kept: Kept) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask, keep = kwargs["attention_mask"], kept[index, "attn"]
        visible = (keep[:, None, :] | torch.eye(keep.shape[1], dtype=torch.bool))[:, None]
        mask = mask[..., : keep.shape[1]].expand(len(keep), -1, -1, -1)
        mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    return hook
