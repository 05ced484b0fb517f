"""Finding a base model, checking it, and loading it.

folder.py               which kind of model a name refers to
weights.py              loads weights strictly
fingerprint.py          whether a base has the weights that routers were trained on
identity.py             what else decides its logits: config and tokenizer
limits.py               how many tokens a model can read, and which
generation_settings.py  how text is generated, and where a turn ends
bitsandbytes.py         bases of 8 or 4 bits
int8.py                 8-bit weights for inference on a CPU
gguf.py                 bases in GGUF files
gguf_header.py          the header of such a file
gguf_rope.py            its rotary embedding
"""
