"""The authors' model in plain torch: what a converted checkpoint has to compute.

A Llama whose layers follow the wrapper of the authors' code, with the decisions of their fork: the
larger logit wins, nothing is sampled. Written from the formulas; it shares no code with skipgpt
or transformers.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn.functional import silu


def authors_logits(
    weights: dict[str, Tensor], file: dict[str, Tensor], tokens: Tensor, *, config, alpha: int = 32
) -> Tensor:
    """Logits [B, T, V] of a base model's weights under the routers and LoRA of an authors' file."""
    weights, file = (
        dict(weights),
        {re.sub(r"^.*?(?=model\.layers)", "", k): v for k, v in file.items()},
    )
    for key, down in file.items():
        if ".lora_A" in key:
            up = file[key.replace(".lora_A", ".lora_B")]
            name = key.split(".lora_A")[0].replace(".block.", ".") + ".weight"
            weights[name] = weights[name] + (alpha / len(down)) * up @ down

    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        runs_attention = _executes(file, at + "router_attention.", hidden)
        runs_mlp = _executes(file, at + "router_mlp.", hidden)
        normed = _norm(hidden, weights[at + "input_layernorm.weight"], config.rms_norm_eps)
        hidden = hidden + _attention(weights, at + "self_attn.", normed, config) * runs_attention
        normed = _norm(hidden, weights[at + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gated = silu(normed @ weights[at + "mlp.gate_proj.weight"].T)
        raised = gated * (normed @ weights[at + "mlp.up_proj.weight"].T)
        hidden = hidden + (raised @ weights[at + "mlp.down_proj.weight"].T) * runs_mlp
    hidden = _norm(hidden, weights["model.norm.weight"], config.rms_norm_eps)
    return hidden @ weights["lm_head.weight"].T


def _executes(file: dict[str, Tensor], at: str, hidden: Tensor) -> Tensor:
    """[B, T, 1], 1 where the first of a router's two logits is the larger."""
    if at + "hidden_layer.weight" in file:
        hidden = hidden @ file[at + "hidden_layer.weight"].T + file[at + "hidden_layer.bias"]
        hidden = hidden.clamp(min=0)
    logits = hidden @ file[at + "weight_predictor.weight"].T + file[at + "weight_predictor.bias"]
    return (logits.argmax(-1) == 0).to(hidden.dtype).unsqueeze(-1)


def _norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def _attention(weights: dict[str, Tensor], at: str, normed: Tensor, config) -> Tensor:
    batch, length, _ = normed.shape
    size, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads

    def heads(name: str) -> Tensor:
        return (
            (normed @ weights[f"{at}{name}.weight"].T).view(batch, length, -1, size).transpose(1, 2)
        )

    queries, keys = _rotate(heads("q_proj")), _rotate(heads("k_proj"))
    keys = keys.repeat_interleave(groups, dim=1)
    values = heads("v_proj").repeat_interleave(groups, dim=1)
    scores = queries @ keys.transpose(2, 3) / size**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ values
    return mixed.transpose(1, 2).reshape(batch, length, -1) @ weights[f"{at}o_proj.weight"].T


def _rotate(heads: Tensor, theta: float = 10_000.0) -> Tensor:
    """Rotary positions over the two halves of each head, [B, H, T, head size]."""
    length, half = heads.shape[2], heads.shape[3] // 2
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(half) / half)
    first, second = heads[..., :half], heads[..., half:]
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
