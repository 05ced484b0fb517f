"""Export a checkpoint as one transformers folder, with its LoRA merged.

Either with its routers, or without the modules that hardly any token keeps:

    merged.py         base and routers; still decides token by token, needs skipgpt
    static.py         without modules that are rarely kept; plain transformers loads it
    static_result.py  what was removed, and the losses
    pairing.py        which modules can go, and how the others form layers; works without tensors
    rebuild.py        config and weights of those layers, as a model of the same family
    transformers4.py  what transformers 4 reads, in every folder
    checks.py         checks of both kinds of export
"""

from __future__ import annotations

from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.export.static import export_static
from skipgpt.export.static_result import StaticExport

__all__ = ["StaticExport", "as_auto_model", "export_merged", "export_static"]
