"""A checkpoint as one ordinary transformers folder: with its routers, or for good without modules.

merged.py    base, merged LoRA and routers; still decides token by token, needs skipgpt
static.py    modules that hardly any token keeps are gone; plain transformers loads it
pairing.py   which modules can go, and how the others form layers; no tensor in sight
smaller.py   config and weights of those layers, as a model of the same family
checks.py    what neither kind of export takes
"""

from __future__ import annotations

from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.export.static import export_static
from skipgpt.export.static_result import StaticExport

__all__ = ["StaticExport", "as_auto_model", "export_merged", "export_static"]
