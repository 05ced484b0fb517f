"""What the invariants range over: families, padding, batch sizes; and models worth comparing."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

import zoo
from lively import build_lively
from skipgpt.config import RouterConfig
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers, stand_ins
from skipgpt.routing.decision import Decision, ModuleDecision, Site, Threshold
from tiny import LONG, OLDEST

# Float32 has a relative precision of 1.2e-7. Logits here reach 10, residual streams 30, and a few
# hundred sums lie on the way, so equal computations in another order differ by up to 5e-6
# (measured). A wrong token, mask, position or gate shows from 1e-2 upwards.
CLOSE = {"rtol": 0.0, "atol": 1e-5}
# Gradients are sums over all tokens and reach 10 to 100; the same precision, relative to that.
CLOSE_GRADIENT = {"rtol": 2e-4, "atol": 2e-4}


@functools.cache
def _base(family: str, attention: str | None) -> nn.Module:
    return build_lively(family, attention)


def base(family: str = "llama", attention: str | None = None) -> nn.Module:
    """A random model in which every weight matters to the logits."""
    return copy.deepcopy(_base(family, attention))


def routed(family: str = "llama", attention: str | None = None, **router: object) -> nn.Module:
    """The same with routers that skip about half; executes `sparse`. Stand-ins matter, too."""
    return with_routers(base(family, attention), **router)


def with_routers(model: nn.Module, **router: object) -> nn.Module:
    """A model of `base`, to which they are added."""
    torch.default_generator.manual_seed(1)  # torch.manual_seed takes longer than a model
    add_routers(model, RouterConfig(**router))
    for stand_in in stand_ins(model).values():
        for parameter in stand_in.parameters():
            nn.init.normal_(parameter, std=0.2)
    # Where nothing is said: what is made to be fast is what is tested.
    routing_state(model).execution = "sparse"
    return model.eval()


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows of token ids [B, T] with as many padding tokens on the left as given, T in all."""

    pads: tuple[int, ...]
    padded: bool
    tokens: int = 11

    @property
    def ids(self) -> Tensor:
        """Token ids [B, T]; 0 is padding only."""
        made = torch.Generator().manual_seed(len(self.pads))
        ids = torch.randint(1, 257, (len(self.pads), self.tokens), generator=made)
        return ids * self.real

    @property
    def real(self) -> Tensor:
        """[B, T] bool, False at padding."""
        return torch.arange(self.tokens) >= torch.tensor(self.pads)[:, None]

    @property
    def prompt(self) -> dict[str, Tensor]:
        """The keyword arguments of `generate`."""
        mask = {"attention_mask": self.real.long()} if self.padded else {}
        return {"input_ids": self.ids, **mask}

    @property
    def given(self) -> dict[str, Tensor]:
        """The keyword arguments of a model's forward."""
        return self.chunk(0, self.tokens)

    def chunk(self, start: int, end: int) -> dict[str, Tensor]:
        """Those of a forward over some columns, with all before them in the cache.

        Positions count from the text, as `generate` counts them; left to itself a model with
        learned positions counts from the padding.
        """
        given = {"input_ids": self.ids[:, start:end]}
        if self.padded:
            positions = (self.real.cumsum(1) - 1).clamp(min=0)
            given["attention_mask"] = self.real[:, :end].long()
            given["position_ids"] = positions[:, start:end]
        return given

    def rows(self) -> list[Tensor]:
        """Token ids of each row without its padding."""
        return [ids[real] for ids, real in zip(self.ids, self.real, strict=True)]


ONE_ROW = Inputs((0,), padded=False)
LEFT_PADDED = Inputs((3, 0, 6), padded=True)
BATCHES = {
    "one-row": ONE_ROW,
    "three-rows": Inputs((0, 0, 0), padded=False),
    "one-row-left-padded": Inputs((3,), padded=True),
    "three-rows-left-padded": LEFT_PADDED,
}
every_batch = pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)


def _known(name: str, *more: object) -> object:
    """Parameters that are skipped where the installed transformers is older than the family."""
    since = FAMILIES[zoo.family_name(name)].since if zoo.family_name(name) in FAMILIES else ""
    newer = bool(since) and Version(transformers.__version__) < Version(since)
    skipped = pytest.mark.skipif(newer, reason=f"transformers < {since}")
    return pytest.param(name, *more, marks=skipped)


def families(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for these families and variants."""
    return pytest.mark.parametrize("family", [_known(name) for name in names])


def families_with(
    argument: str,
    values: Sequence[object],
    *,
    few: Sequence[object] = (),
    names: Iterable[str] = (),
    whole: Collection[str] = ("llama",),
) -> pytest.MarkDecorator:
    """Run a test for these families, one of each layout if none are named, and these values.

    In the short suite only `whole` meet all values; others meet `few`, or every second value in
    turn. A value is a tuple where there are several arguments.
    """
    cases = []
    for n, name in enumerate(names or EVERY_LAYOUT):
        chosen = values if LONG or name in whole else few or values[n % 2 :: 2]
        cases += [_known(name, *(v if "," in argument else (v,))) for v in chosen]
    return pytest.mark.parametrize(f"family, {argument}", cases)


every_family = families(zoo.ZOO)
# One for each way in which norms, modules, projections, masks and caches are put together.
LAYOUTS = (
    "llama",
    "qwen2",
    "gemma3_text",
    "olmo2",
    "phi3",
    "gpt2",
    "bloom",
    "gpt_neox",
    "cohere2",
    "falcon/new",
    "mixtral",
    "gpt_oss",
    "deepseek_v3",
)
EVERY_LAYOUT = tuple(zoo.ZOO) if LONG else LAYOUTS

# What holds for each family, and is tried with a family of each layout on the oldest pins.
conformance = families(LAYOUTS if OLDEST else zoo.ZOO)


def layouts(but: Collection[str] = (), more: Collection[str] = ()) -> pytest.MarkDecorator:
    """Run a test for a family of each layout; in the long suite for every family but some."""
    names = dict.fromkeys((*EVERY_LAYOUT, *more))
    return families(name for name in names if zoo.family_name(name) not in but and name not in but)


every_layout = layouts()
KEEP_ALL = Threshold(-math.inf)
SITES = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]


@dataclass(frozen=True)
class SoftGate:
    """A gate that is the sigmoid of the margin: differentiable, and every value matters."""

    def __call__(self, margin: Tensor, site: object) -> ModuleDecision:
        gate = torch.sigmoid(margin)
        return ModuleDecision(gate > 0.5, gate, margin)


def module_decisions(decisions: dict[int, Decision]) -> list[ModuleDecision]:
    """Of all sites, in layer order, attention before MLP."""
    return [each for n in sorted(decisions) for each in (decisions[n].attn, decisions[n].mlp)]


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for roundings, by name.

    Gradients are sums of terms that may be far larger than the sum, so a rounding is measured by
    the largest gradient of a parameter, and, where that is small itself, of the whole model.
    """
    assert actual.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values())
    assert largest > 1e-3, "nothing to compare"
    for name, wanted in expected.items():
        room = 1e-4 * wanted.abs().max() + 1e-6 * largest
        assert (actual[name] - wanted).abs().max() <= room, name


def checkpoint_activations(model: nn.Module, use_reentrant: bool) -> None:
    """By the method's name in this transformers: it was renamed within the supported range."""
    is_new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if is_new else "gradient_checkpointing_enable"
    getattr(model, name)({"use_reentrant": use_reentrant})
