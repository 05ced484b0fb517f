"""A checkpoint as one transformers folder, its LoRA merged.

Either with its routers, or without the modules that hardly any token keeps:

    merged.py         base and routers; still decides token by token, needs skipgpt
    static.py         modules that are rarely kept are gone; plain transformers loads it
    static_result.py  what was removed, and the losses
    pairing.py        which modules can go, and how the others form layers; no tensor in sight
    rebuild.py        config and weights of those layers, as a model of the same family
    transformers4.py    what transformers 4 reads, in every folder
    checks.py         what neither kind of export takes
"""

from __future__ import annotations

from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.export.static import export_static
from skipgpt.export.static_result import StaticExport

__all__ = ["StaticExport", "as_auto_model", "export_merged", "export_static"]
