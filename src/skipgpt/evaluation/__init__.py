"""Evaluation: loss and perplexity on text, benchmarks, and calibration of thresholds.

perplexity.py     loss on held-out text, and the sparsity of the same run
closeness.py      KL divergence and agreement with the dense model
continuations.py  greedy continuations, scored by the dense model
protocols.py      the forms in which a text is measured
corpora.py        WikiText-2 and PTB, joined as papers join them
text_result.py    the result of a text
source_rows.py    rows to measure on, from sources of text
windows.py        rows from a stream of tokens
calibrate.py      calibrates a model on held-out text
meter.py          what a model saves on a text at a threshold
cache_memory.py   memory of keys and values
harness/          published benchmarks
"""
