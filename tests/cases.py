"""What the invariants range over: families, padding, batch sizes; and models worth comparing."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from conftest import FAMILY_NAMES, tiny_base
from skipgpt.config import RouterConfig
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import Decision, ModuleDecision

# Float32 has a relative precision of 1.2e-7. Logits here reach 10, residual streams 30, and a few
# hundred sums lie on the way, so equal computations in another order differ by up to 5e-6
# (measured). A wrong token, mask, position or gate shows from 1e-2 upwards.
CLOSE = {"rtol": 0.0, "atol": 5e-5}
# Gradients are sums over all tokens and reach 10 to 100; the same precision, relative to that.
CLOSE_GRADIENT = {"rtol": 2e-4, "atol": 2e-4}

# With the usual small initial weights, attention is uniform, soft caps are linear and layers add
# next to nothing: mistakes would be invisible. Windows are shorter than the rows, layers mix them.
_WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
_LIVELY = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"use_sliding_window": True, **_WINDOW},
    "qwen3": {"use_sliding_window": True, **_WINDOW},
    "gemma2": {
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 5,
        **_WINDOW,
    },
    "gemma3_text": {"query_pre_attn_scalar": 5, **_WINDOW},
}
for _changes in _LIVELY.values():
    if "layer_types" in _changes:
        _changes["layer_types"] = _changes["layer_types"][:3]


@functools.cache
def _base(family: str, attention: str | None) -> nn.Module:
    extra = {"attn_implementation": attention} if attention else {}
    model = tiny_base(family, initializer_range=0.2, **_LIVELY.get(family, {}), **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def base(family: str = "llama", attention: str | None = None) -> nn.Module:
    """A random model in which every weight matters to the logits."""
    return copy.deepcopy(_base(family, attention))


def routed(family: str = "llama", attention: str | None = None, **router: object) -> nn.Module:
    """The same with routers that skip about half; executes `sparse`."""
    model = base(family, attention)  # draws the first time it is asked for
    torch.default_generator.manual_seed(1)  # torch.manual_seed takes longer than the model
    return add_routers(model, RouterConfig(**router)).eval()


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
    def given(self) -> dict[str, Tensor]:
        """The keyword arguments of a model's forward."""
        mask = {"attention_mask": self.real.long()} if self.padded else {}
        return {"input_ids": self.ids, **mask}

    def rows(self) -> list[Tensor]:
        """Token ids of each row without its padding."""
        return [ids[real] for ids, real in zip(self.ids, self.real, strict=True)]


LEFT_PADDED = Inputs((3, 0, 6), padded=True)
every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
every_batch = pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(Inputs((0,), padded=False), id="one-row"),
        pytest.param(Inputs((0, 0, 0), padded=False), id="three-rows"),
        pytest.param(Inputs((3,), padded=True), id="one-row-left-padded"),
        pytest.param(LEFT_PADDED, id="three-rows-left-padded"),
    ],
)


@dataclass(frozen=True)
class SoftGate:
    """A gate that is the sigmoid of the margin: differentiable, and every value matters."""

    def __call__(self, margin: Tensor, site: object) -> ModuleDecision:
        gate = torch.sigmoid(margin)
        return ModuleDecision(gate > 0.5, gate, margin)


def module_decisions(decisions: dict[int, Decision]) -> list[ModuleDecision]:
    """Of all sites, in layer order, attention before MLP."""
    return [each for n in sorted(decisions) for each in (decisions[n].attn, decisions[n].mlp)]
