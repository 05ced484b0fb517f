"""The loop of one stage: transformers' Trainer, its data order, metrics and saved state.

trainer.py             transformers' Trainer with the budget in the loss
resumable.py           its resume states
optimizer_state.py     the optimizer's, unsharded
arguments.py           its arguments
callbacks.py           metrics file, warnings, progress, stops
sampler.py             which rows a step trains on
budget_threshold.py    the threshold of stage `lora`
lora_dropout.py        dropout by token
metric_accumulator.py  metrics between two lines of the log
routing_metrics.py     what routers do in a step
single_step.py         one step outside a run, for benchmarks
"""
