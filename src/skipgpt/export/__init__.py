"""Export a checkpoint as one transformers folder, with its LoRA merged.

Either with its routers, or without the modules that hardly any token keeps:

    merged.py         base and routers; still decides token by token, needs skipgpt
    static.py         without modules that are rarely kept; plain transformers loads it
    static_result.py  what was removed, and the losses
    choosing.py       which modules go, from their keep rates and the form
    pairing.py        which can go together, and how the others form layers; works without tensors
    decilm.py         the form for vLLM, whose layers may lack a module
    rebuild.py        config and weights of those layers, as a model of the same family
    transformers4.py  what transformers 4 reads, in every folder
    checks.py         checks of both kinds of export
"""

from __future__ import annotations

from skipgpt.export.merged import as_auto_model, export_merged
from skipgpt.export.static import export_static
from skipgpt.export.static_result import StaticExport

__all__ = ["StaticExport", "as_auto_model", "export_merged", "export_static"]
