"""Turn a pretrained Hugging Face LLM into one that decides, for every token, which modules to run.

Every public name is listed here and imported when first used, so that `import skipgpt` costs little
more than nothing; the rest is reached by module path and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipgpt.checkpoint.folder import push_to_hub as push_to_hub
    from skipgpt.checkpoint.loading import load as load
    from skipgpt.checkpoint.saving import save as save
    from skipgpt.comparison.compare import compare as compare
    from skipgpt.config import RouterConfig as RouterConfig
    from skipgpt.config import TrainConfig as TrainConfig
    from skipgpt.config import recipe as recipe
    from skipgpt.errors import SkipGPTError as SkipGPTError
    from skipgpt.evaluation.calibrate import calibrate as calibrate
    from skipgpt.evaluation.perplexity import perplexity as perplexity
    from skipgpt.export import export_merged as export_merged
    from skipgpt.export import export_static as export_static
    from skipgpt.model.auto import register as register
    from skipgpt.model.caches.skip_cache import SkipCache as SkipCache
    from skipgpt.model.sparsity import at_sparsity as at_sparsity
    from skipgpt.model.sparsity import set_sparsity as set_sparsity
    from skipgpt.model.state import execution as execution
    from skipgpt.model.state import record_routing as record_routing
    from skipgpt.model.surgery import add_routers as add_routers
    from skipgpt.model.surgery import remove_routers as remove_routers
    from skipgpt.model.surgery import routed_layers as routed_layers
    from skipgpt.report.charts.routing_map import routing_map as routing_map
    from skipgpt.training.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "RouterConfig": "config",
    "SkipCache": "model.caches.skip_cache",
    "SkipGPTError": "errors",
    "TrainConfig": "config",
    "add_routers": "model.surgery",
    "at_sparsity": "model.sparsity",
    "calibrate": "evaluation.calibrate",
    "compare": "comparison.compare",
    "execution": "model.state",
    "export_merged": "export",
    "export_static": "export",
    "load": "checkpoint.loading",
    "perplexity": "evaluation.perplexity",
    "push_to_hub": "checkpoint.folder",
    "recipe": "config",
    "record_routing": "model.state",
    "register": "model.auto",
    "remove_routers": "model.surgery",
    "routed_layers": "model.surgery",
    "routing_map": "report.charts.routing_map",
    "save": "checkpoint.saving",
    "set_sparsity": "model.sparsity",
    "train": "training.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skipgpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"skipgpt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
