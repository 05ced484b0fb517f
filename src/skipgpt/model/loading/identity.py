"""What decides a base model's logits besides its weights: fields of its config, and the tokenizer.

A checkpoint records them, so that loading detects a base with the same weights that computes
something else: another rotary base, another epsilon, another vocabulary.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from skipgpt.errors import CheckpointError
from skipgpt.system.digest import json_digest

logger = logging.getLogger("skipgpt")

TOKENIZER, VERSION = "tokenizer.", "transformers_version"
_ROLES = ("bos", "eos", "unk")
_SAMPLE, _RULES = TOKENIZER + "sample", TOKENIZER + "rules"
_PROBE = "Hello, World! 12345 déjà-vu\n\n\tdef f(x):  return x ** 2  # 你好 🙂"
_DECIDE_NOTHING = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache", "id2label",
     "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
     "output_router_logits", "router_aux_loss_coef", "initializer_range", "quantization_config",
     "pretraining_tp", "chunk_size_feed_forward", "tokenizer_class", "attn_implementation"}
)  # fmt: skip
"""Fields of a config that change no logit, or that something else records."""
_DECIDE_LITTLE = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings",
     "tokenizer.eos_token", "tokenizer.chat_template"}
)  # fmt: skip
"""Settings that change where a text begins, ends or is cut, but no logit of given tokens."""


def settings_of(model: Any, tokenizer: Any = None) -> dict[str, Any]:
    """The settings by which a base with the same weights may differ, as JSON values."""
    config = {k: v for k, v in model.config.to_dict().items() if not _is_idle(k)}
    found = dict(_flat(config))
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        texts = {
            "vocabulary": f"{len(vocabulary)} tokens, {json_digest(sorted(vocabulary.items()))}",
            "sample": json_digest(tokenizer(_PROBE).input_ids),
            "rules": json_digest(tokenizer_rules(tokenizer)),
            "chat_template": json_digest(getattr(tokenizer, "chat_template", None)),
        }
        texts |= {f"{role}_token": getattr(tokenizer, f"{role}_token") for role in _ROLES}
        found |= {TOKENIZER + name: value for name, value in texts.items()}
    return found


def digest_of_settings(settings: Mapping[str, Any]) -> str:
    """16 hex digits that change with any setting, whatever release of transformers reads them."""
    return json_digest({k: v for k, v in settings.items() if k != VERSION})


def refuse_other_settings(then: Mapping[str, Any], now: Mapping[str, Any], doing: str) -> None:
    """Compare the settings of a base model with those that a checkpoint records, if it does.

    A difference only warns if it changes no logit of given tokens, if only one of two releases of
    transformers has the field, or if two releases encode the sample text differently or write the
    tokenizer's rules differently.

    Raises:
        CheckpointError: settings that decide logits differ; names each with both values.
    """
    same_release = then.get(VERSION) == now.get(VERSION)
    wrong: list[str] = []
    odd: list[str] = []
    for name in sorted(then.keys() | now.keys() if then else ()):
        old, new = (side.get(name, "absent") for side in (then, now))
        if old == new or name == VERSION:
            continue
        if name.startswith(TOKENIZER) and not (name in then and name in now):
            continue  # a model was described without its tokenizer
        both = (name in then and name in now) or same_release
        little = (
            name in _DECIDE_LITTLE or not both or (name in (_SAMPLE, _RULES) and not same_release)
        )
        (odd if little else wrong).append(f"{name} {_short(new)}, was {_short(old)}")
    if wrong:
        raise CheckpointError(
            doing,
            got=f"a base model with the same weights and other settings: {'; '.join(wrong)}",
            expected="the settings that the routers were trained with",
            todo="undo the change in the base's folder; if it is meant, write the new values into "
            "base_settings of skipgpt_config.json",
        )
    if odd:
        logger.warning("%s: the base model has changed since: %s", doing, "; ".join(odd))


def tokenizer_rules(tokenizer: Any) -> str | None:
    """What decides how a fast tokenizer cuts a text, as it writes itself; None of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    written: str = backend.to_str()
    return written[written.index('"added_tokens"') :]  # behind how it cuts and pads right now


def _is_idle(name: str) -> bool:
    return name in _DECIDE_NOTHING or name.endswith(("dropout", "_pdrop", "_drop"))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested fields under dotted names; values that JSON does not have, as text."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield name, str(value)
        else:
            yield name, json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = value if value == "absent" else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
