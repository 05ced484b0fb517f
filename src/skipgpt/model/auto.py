"""Auto classes: a merged export is an ordinary transformers folder with a model type of its own.

`skipgpt_llama` is the family's config with four more fields and the family's model with routers
in its layers; so `from_pretrained`, `save_pretrained`, `generate` and the hub work unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from skipgpt.config import Budget, RouterConfig, check_pair
from skipgpt.config.settings import from_dict
from skipgpt.model.families.family import Family
from skipgpt.model.families.parameter_names import ROUTING_PARTS
from skipgpt.model.families.table import FAMILIES, MERGED_PREFIX
from skipgpt.model.loading.bitsandbytes import make_safe
from skipgpt.model.loading.weights import load_strictly
from skipgpt.model.sparsity import at_sparsity, set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.curve import CalibrationCurve, Curves, Points

_CODE_FILE = "modeling_skipgpt"
_CODE = '''"""For from_pretrained(…, trust_remote_code=True); needs the package skipgpt."""

from skipgpt.model.auto import auto_classes

SkipGPTConfig, SkipGPTForCausalLM = auto_classes("{model_type}")
'''

_OURS = frozenset(f".+{part}" for part in ROUTING_PARTS)
"""Patterns of the parameter names of routers and stand-ins, as transformers matches them."""


@functools.cache
def auto_classes(model_type: str) -> tuple[type[Any], type[Any]]:
    """The config and model class of a family's merged exports.

    Example:
        config_class, model_class = auto_classes("llama")   # SkipGPTLlamaConfig, …ForCausalLM
    """
    family = FAMILIES[model_type]
    base_model: Any = family.model_class
    base_config: Any = base_model.config_class

    class SkipGPTConfig(base_config):  # type: ignore[misc]
        """The family's config with `router`, `calibration`, `sparsity` and its `budget`.

        Exports from before there were units have a `curve` in modules in place of `calibration`.
        """

        def __init__(
            self,
            router: dict[str, Any] | None = None,
            curve: list[tuple[float, float | None]] | None = None,
            calibration: dict[str, Any] | None = None,
            sparsity: float | None = None,
            budget: Budget | None = None,
            **values: Any,
        ) -> None:
            super().__init__(**values)
            self.router = router or dataclasses.asdict(RouterConfig())
            found = _curves(calibration, curve)
            self.calibration = None if found is None else found.to_json()
            self.sparsity, self.budget = sparsity, budget

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            """Save the config, and the code that `trust_remote_code=True` runs."""
            folder = Path(save_directory)
            self.auto_map = {
                "AutoConfig": f"{_CODE_FILE}.SkipGPTConfig",
                "AutoModelForCausalLM": f"{_CODE_FILE}.SkipGPTForCausalLM",
            }
            folder.mkdir(parents=True, exist_ok=True)
            code = _CODE.format(model_type=model_type)
            (folder / f"{_CODE_FILE}.py").write_text(code, encoding="utf-8")
            return super().save_pretrained(save_directory, *args, **kwargs)

        @classmethod
        def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
            """Do nothing; transformers would save this module, which is not what is needed."""

        @property
        def curve(self) -> Points | None:
            """Sparsities and thresholds in the unit that `sparsity` counts, as JSON has them."""
            found = _curves(self.calibration, None)
            return None if found is None else found.curve(self.budget).to_json()

    SkipGPTConfig.model_type = MERGED_PREFIX + model_type

    class SkipGPTForCausalLM(base_model):  # type: ignore[misc]
        """The family's model with routers, set to the config's sparsity."""

        config_class = SkipGPTConfig
        # The strict one covers float16 and bfloat16; quantisers leave alone what the other names.
        _keep_in_fp32_modules_strict = _keep_in_fp32_modules = _OURS

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            add_routers(self, from_dict(RouterConfig, config.router))
            state = routing_state(self)
            state.curves, state.lora = curves_of(config), True
            if config.sparsity is not None:
                set_sparsity(self, config.sparsity, budget=config.budget)

        @classmethod
        def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
            """Do nothing: the config saves the code that is needed."""

        @classmethod
        def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
            """Load strictly: transformers would initialise a missing router at random."""
            asked = kwargs.pop("output_loading_info", False)
            load = functools.partial(super().from_pretrained, **kwargs)
            model, info = load_strictly(load, name, f"loading the merged export {name}", *args)
            make_safe(model, "loading quantised")  # routers are added before quantising
            return (model, info) if asked else model

        def generate(
            self,
            *args: Any,
            sparsity: float | None = None,
            budget: Budget | None = None,
            **kwargs: Any,
        ) -> Any:
            check_pair(sparsity, budget)
            at_requested = (
                nullcontext() if sparsity is None else at_sparsity(self, sparsity, budget=budget)
            )
            with at_requested:
                return super().generate(*args, **kwargs)

    for made, name in zip((SkipGPTConfig, SkipGPTForCausalLM), _names(family), strict=True):
        made.__name__ = made.__qualname__ = name
    return SkipGPTConfig, SkipGPTForCausalLM


def __getattr__(name: str) -> type[Any]:
    """Find a class by name, as pickle does: engines send configs to other processes."""
    for family in FAMILIES.values():
        if name in _names(family):
            return auto_classes(family.model_type)[_names(family).index(name)]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _names(family: Family) -> tuple[str, str]:
    return f"SkipGPT{family.prefix}Config", f"SkipGPT{family.prefix}ForCausalLM"


def register(*families: str) -> None:
    """Teach transformers the model types of merged exports.

    After it, `AutoModelForCausalLM.from_pretrained(folder)` loads a merged export, and also takes
    `sparsity=` and `budget=`. Without it the same call needs `trust_remote_code=True`.

    Args:
        *families: model types of the bases; all if none is named.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    for model_type in families or FAMILIES:
        config_class, model_class = auto_classes(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


def curves_of(config: Any) -> Curves | None:
    """The calibration curves in the config of a merged export; None if never calibrated."""
    return _curves(getattr(config, "calibration", None), getattr(config, "curve", None))


def _curves(calibration: dict[str, Any] | None, curve: Points | None) -> Curves | None:
    if calibration is not None:
        return Curves.from_json(calibration)
    return None if curve is None else Curves.of_modules(CalibrationCurve.from_json(curve))
