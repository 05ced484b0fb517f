"""Tiny GGUF files of known weights, laid out as llama.cpp converts a Llama."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from tiny import tiny_base

BOS, PAIR, EOS = 0, 257, 258
SIZES: dict[str, object] = {
    "vocab_size": 259,
    "intermediate_size": 64,  # rows of whole blocks of 32
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
F32, Q8_0, Q4_1 = (getattr(GGMLQuantizationType, name) for name in ("F32", "Q8_0", "Q4_1"))


def gguf_llama(seed: int = 0, **changes: object) -> nn.Module:
    """A random Llama in which every weight matters, and which a GGUF file can hold."""
    return tiny_base("llama", seed, **{"initializer_range": 0.2, **SIZES, **changes})


def write_gguf(
    path: Path,
    model: Any = None,
    *,
    kind: GGMLQuantizationType = F32,
    architecture: str = "llama",
    left_out: Collection[str] = (),
    more: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a model with a tokenizer of one token a byte and one pair, `ca`.

    Args:
        path: of the file.
        model: a Llama or a Qwen2; `gguf_llama()` where None.
        kind: of matrices; vectors are float32.
        architecture: said in the file.
        left_out: tensors that it lacks.
        more: tensors besides.
        texts: settings besides.
    """
    model = model or gguf_llama()
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    _add_tokenizer(writer)
    tensors = {_name(name): _as_stored(name, each, model) for name, each in _own(model).items()}
    for name, array in (tensors | dict(more or {})).items():
        if name in left_out:
            continue
        if array.ndim == 1 or kind == F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _own(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.detach() for name, each in model.named_parameters()}


def _name(name: str) -> str:
    place, _, end = name.rpartition(".")
    if place.startswith("model.layers."):
        number, _, inner = place.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[inner]}.{end}"
    return f"{NAMES[place]}.{end}"


def _as_stored(name: str, tensor: torch.Tensor, model: Any) -> np.ndarray:
    """The two halves of each head take turns in queries and keys of a Llama, as in llama.cpp."""
    config = model.config
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None or config.model_type != "llama":
        return tensor.numpy()
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).numpy()


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokens = ["<|begin|>", *sorted(ByteLevel.alphabet()), "ca", "<|end|>"]
    kinds = [TokenType.NORMAL] * len(tokens)
    kinds[BOS] = kinds[EOS] = TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # Twice, since transformers 5.16 takes a list of one for its element.
    writer.add_token_merges(["c a"] * 2)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(EOS)
    writer.add_add_bos_token(False)
