"""Wall-clock benchmarks against the dense model and against the ideal speed-up.

bench.py           runs the grid, dense and routed in turn
grid.py            what is benchmarked: phases, sizes, sparsities, executions, repeats
executions.py      what can be timed beside dense
shapes.py          shapes of Llama, for random weights
subject.py         the models that are timed, and the text they read
inference.py       candidates of the inference phases
steps.py           candidates of the training phases
reference_runs.py  a static model of equal FLOPs, and compiled dense
profile.py         measures a device for execution `auto`
result.py          results as JSON and as a table
pages.py           writes results to disk
timing/            clocks, phases, and the runs that are timed
"""
