"""Training: stages on transformers' Trainer, and the chain from base model to checkpoint.

run.py           the chain from base model to checkpoint
run_start.py     what a run starts from
run_stage.py     one stage
run_record.py    the folder of a run
stages.py        what each stage trains, and how its forwards decide
fit_stage.py     stage `fit`
measurement.py   calibration and loss around stages
distillation.py  the loss towards the dense base
launcher.py      checks what a launcher asks for
dry_run.py       estimates what a run would take
needs.py         that estimate: memory, FLOPs and hours
loop/            the loop of one stage
"""
