"""How a Hugging Face decoder gets routers: families, the routed layer, its executions, surgery.

layer.py            the routed layer; read it first
routed.py           its attributes
modules.py          calls a family's norms, attention and MLP
packing.py          takes rows of kept tokens out, and puts them back
packing_cost.py     when packing pays
state.py            how a model routes, and what changes it for a while
trace.py            recorded decisions
sparsity.py         sets the sparsity of a calibrated model
forward_hooks.py    prepares each forward
surgery.py          puts routers in and takes them out
residual_stream.py  captures the residual stream
lora.py             LoRA, through PEFT
base.py             finds and loads a base model
auto.py             auto classes of merged exports
families/           what differs between families
loading/            finding, checking and loading a base
caches/             caches of keys and values
attention/          attention for some tokens
execution/          how a module runs
"""
