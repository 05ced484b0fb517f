"""Serving checkpoints over HTTP: a server on transformers, and a plug-in for vLLM.

serve.py             serves a checkpoint
engine_selection.py  chooses vLLM or our own server
server.py            our own server
app.py               its paths, errors and streams
middleware.py        API key, body limit, response counters
protocol.py          requests
replies.py           responses
tokens.py            tokens of a reply, with log-probabilities
engine.py            the queue, and the thread that runs the model
generation.py        runs one request
metrics.py           /metrics
address.py           the socket, and the origins that may call it
vllm/                a plug-in for vLLM
"""
