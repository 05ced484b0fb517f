"""Products and attention of kept tokens only, without waiting for how many there are.

How many tokens a module runs is data. On a GPU, asking for it stops the host until the device has
caught up, once a module. Here the number stays on the device: results have the shape of all tokens,
kernels read the number themselves, and what lies behind it is never written and never read.

Each kernel has a plain PyTorch twin of the same signature, `plain.py`, which defines what it does;
`select.py` says where the kernels can run. Nothing of Triton is imported before that.
"""
