"""Products and attention of kept tokens only, without waiting for how many there are.

How many tokens a module runs depends on the data. On a GPU, reading the number makes the host wait
for the device, once per module. Here it stays on the device: results have the shape of all tokens,
kernels read the number themselves, and rows beyond it are never written and never read.

Each kernel has a plain PyTorch twin of the same signature, which it is tested against, in
`tests/support/plain_kernels.py`. `select.py` says where the kernels can run; Triton is not imported
before that.
"""
