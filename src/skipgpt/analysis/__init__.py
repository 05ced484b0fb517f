"""Tables from traces of a text: what is skipped, where, for which tokens, and at what cost.

    trace.py       traces of a model on a text, from which every analysis starts
    table.py       what an analysis returns: a question, numbers and findings
    statistics.py  the statistics that analyses share
    keep_rates.py  keep rates by module
    positions.py   keep rates along the sequence
    tokens.py      keep rates by kind of token, and by surprisal
    health.py      whether decisions depend on the token
    redundancy.py  which modules change the residual stream least
    stress.py      what degrades first as the sparsity rises
    transfer.py    whether different checkpoints skip the same parts
    failures.py    known failures of training, from the lines of its log

Trace a text first; each analysis is then a pure function from traces to a `Table`:

    rows = rows_of(encode_stream(documents, tokenizer).ids, 256)
    trace, dense = trace_text(model, tokenizer, rows), trace_dense(model, tokenizer, rows)
    for table in (keep_by_module(trace), routing_health(trace), keep_by_token(trace, dense)):
        print(table.to_markdown())
"""

from __future__ import annotations

from skipgpt.analysis.health import routing_health
from skipgpt.analysis.keep_rates import keep_by_module
from skipgpt.analysis.positions import keep_by_position
from skipgpt.analysis.redundancy import redundancy
from skipgpt.analysis.stress import norms_by_layer, stress
from skipgpt.analysis.table import Table
from skipgpt.analysis.tokens import keep_by_token
from skipgpt.analysis.trace import DenseTrace, Reading, Text, TextTrace, trace_dense, trace_text
from skipgpt.analysis.transfer import depth_profiles, side_by_side

__all__ = [
    "trace_text",
    "trace_dense",
    "Text",
    "Reading",
    "TextTrace",
    "DenseTrace",
    "Table",
    "redundancy",
    "keep_by_module",
    "keep_by_position",
    "keep_by_token",
    "routing_health",
    "stress",
    "norms_by_layer",
    "depth_profiles",
    "side_by_side",
]
