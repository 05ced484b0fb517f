"""Turn a pretrained Hugging Face LLM into one that decides, for every token, which modules to run.

Every public name is listed here once and imported when first used, so that `import skipgpt` costs
little more than nothing; the rest is reached by module path and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipgpt.config import RouterConfig as RouterConfig
    from skipgpt.config import TrainConfig as TrainConfig
    from skipgpt.config import recipe as recipe
    from skipgpt.errors import SkipGPTError as SkipGPTError
    from skipgpt.model.surgery import add_routers as add_routers
    from skipgpt.model.surgery import remove_routers as remove_routers
    from skipgpt.model.surgery import routed_layers as routed_layers
    from skipgpt.model.trace import execution as execution
    from skipgpt.model.trace import record_routing as record_routing
    from skipgpt.model.trace import set_sparsity as set_sparsity

__version__ = "0.1.0"

_HOMES = {
    "RouterConfig": "config",
    "SkipGPTError": "errors",
    "TrainConfig": "config",
    "add_routers": "model.surgery",
    "execution": "model.trace",
    "recipe": "config",
    "record_routing": "model.trace",
    "remove_routers": "model.surgery",
    "routed_layers": "model.surgery",
    "set_sparsity": "model.trace",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skipgpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"skipgpt.{_HOMES[name]}"), name)
