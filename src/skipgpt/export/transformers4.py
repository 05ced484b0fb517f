"""Add what transformers 4 reads to what transformers 5 writes into a folder.

    what                    transformers 5              transformers 4
    rotary embeddings       rope_parameters             rope_theta, rope_scaling, …
    number format           dtype                       torch_dtype before 4.56
    a general tokenizer     TokenizersBackend           PreTrainedTokenizerFast
    further special tokens  extra_special_tokens        additional_special_tokens

transformers 4 replaces an absent field by a default, without an error: another model. transformers
5 reads the older forms, too, and both agree. Serving engines and converters read either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skipgpt.system.atomic import to_json

_OUTSIDE = ("rope_theta", "partial_rotary_factor")
"""Entries of `rope_parameters` that were fields of the config, not of `rope_scaling`."""

_ENTRIES: dict[str, tuple[str, ...]] = {
    "hunyuan_v1_dense": ("factor", "alpha"),
    "olmo": ("factor",),
    "olmo2": ("factor",),
    "phi3": ("short_factor", "long_factor"),
}
"""What `rope_scaling` may hold beside `type` in families whose older config refuses all else."""

_RENAMED = {"qwen3_moe": {"num_experts": "num_local_experts"}}
"""Fields of a family's config that had another name."""

_ADD_BY_SETTING = (
    "LlamaTokenizer",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "CohereTokenizer",
    "GPTNeoXTokenizer",
)
"""Classes that follow `add_bos_token` in transformers 4, whatever `tokenizer.json` says."""

_BY_ATTENTION = ("gemma3_text", "olmo3")
"""Families with a set of rotary parameters for each kind of attention in both versions."""


def write_older_config(folder: Path) -> None:
    """Add the older forms to the config that transformers 5 wrote into a folder."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(to_json(values | older_config(values)), encoding="utf-8")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that both versions read the same one."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    older = json.loads(path.read_text(encoding="utf-8"))
    kind = str(older.get("tokenizer_class"))
    # PreTrainedTokenizerFast would also return token types, which decoders refuse.
    older["model_input_names"] = list(tokenizer.model_input_names)
    if kind.endswith("Backend"):
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(older.get("extra_special_tokens"), list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    if kind.removesuffix("Fast") in _ADD_BY_SETTING:
        bare = tokenizer("a", add_special_tokens=False).input_ids
        whole = tokenizer("a").input_ids
        before, after = whole.index(bare[0]), len(whole) - len(bare)
        older |= {"add_bos_token": before > 0, "add_eos_token": after > before}
    path.write_text(json.dumps(older, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def older_config(values: dict[str, Any]) -> dict[str, Any]:
    """Express a config of transformers 5 in the fields of transformers 4.

    Example:
        >>> older_config({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
        {'rope_theta': 500000.0, 'rope_scaling': None}
    """
    older = {"torch_dtype": values["dtype"]} if values.get("dtype") else {}
    rope = values.get("rope_parameters")
    if not rope:
        return older
    family = str(values.get("model_type")).removeprefix("skipgpt_")
    if "rope_theta" in rope:
        older |= _rope(rope, values, family)
    elif family in _BY_ATTENTION:
        older |= _rope(rope.get("full_attention") or {}, values, family)
        if family == "gemma3_text":
            older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    for name, today in _RENAMED.get(family, {}).items():
        older[name] = values[today]
    if family == "gpt_neox":
        older["rotary_emb_base"] = older["rope_theta"]
        older["rotary_pct"] = older["partial_rotary_factor"]
    return older


def _rope(rope: dict[str, Any], values: dict[str, Any], family: str) -> dict[str, Any]:
    """Express one set of rotary parameters as fields of the config."""
    outside = {name: rope[name] for name in _OUTSIDE if rope.get(name) is not None}
    kind = rope.get("rope_type", "default")
    inside = {name: value for name, value in rope.items() if name not in _OUTSIDE}
    if family in _ENTRIES:
        length = values.get("original_max_position_embeddings", values["max_position_embeddings"])
        # Both versions derive these from other fields.
        implied = {"rope_type": kind, "type": kind, "original_max_position_embeddings": length}
        said = {n: v for n, v in inside.items() if n not in implied or v != implied[n]}
        # Other entries are written all the same: transformers 4 refuses them, and transformers 5,
        # which takes `rope_scaling` for the whole, reads them.
        if said.keys() <= set(_ENTRIES[family]):
            inside = {"type": kind, **said}
    return outside | {"rope_scaling": None if kind == "default" else inside}
