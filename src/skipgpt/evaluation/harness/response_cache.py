"""Cache of the harness's responses, keyed by everything that they depend on.

The harness keys a response by its request alone, in the one table of a database. Here each model
has a table of its own, so that no model is given the responses of another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from skipgpt.errors import CheckpointError
from skipgpt.model.loading.fingerprint import weights_digest
from skipgpt.model.loading.identity import tokenizer_rules
from skipgpt.model.state import routing_state
from skipgpt.system.atomic import staged
from skipgpt.system.digest import json_digest

_SQLITE = b"SQLite format 3\0"
PACKAGES = ("skipgpt", "torch", "transformers", "lm_eval")
REQUESTS = 3
"""How requests become tokens; a higher number where that changes."""

OF_A_FOLDER = ("_name_or_path", "transformers_version")
"""Config fields that only say where it came from."""


def check_answers(folder: str | Path) -> None:
    """Raise unless responses can be cached in a folder, so that a run fails early.

    Raises:
        CheckpointError: it is a file, cannot be written to, or holds a cache that cannot be read.
    """
    folder = Path(folder)
    try:
        with staged(folder):
            pass
    except CheckpointError as error:
        raise error.advising("name another --use-cache") from error
    for path in sorted(folder.glob("answers-*.db")):
        try:
            with path.open("rb+") as file:
                head = file.read(len(_SQLITE))
        except OSError as error:
            raise CheckpointError(
                f"reading the answers in {path}",
                got=str(error),
                expected="a file that can be read and written",
                todo="give its permissions back, or name another --use-cache",
            ) from error
        if head not in (b"", _SQLITE):
            raise CheckpointError(
                f"reading the answers in {path}",
                got="no database",
                expected="what an earlier run wrote",
                todo="remove it, or name another --use-cache",
            )


def answers_key(lm: Any) -> str:
    """Return 16 hex digits of all that a `RoutedLM`'s responses depend on, except the request."""
    state = routing_state(lm.model)
    dense = state.execution == "dense"
    generates = getattr(lm.model, "generation_config", None)
    made_of = {
        "weights": weights_digest(lm.model, routers=not dense),
        "model": _described(lm.model.config.to_dict()),
        "generation": _described(generates.to_dict()) if generates else None,
        "classes": sorted({type(module).__qualname__ for module in lm.model.modules()}),
        "router": None if dense else dataclasses.asdict(state.config),
        "rule": None if dense else repr(state.rule),
        "execution": state.execution,
        "device": lm.model.device.type,
        "tokenizer": _tokens_of(lm.tokenizer),
        "context": lm.max_length,
        "prefix": lm.prefix_token_id,
        "requests": REQUESTS,
        "add_bos_token": lm.add_bos_token,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return json_digest(made_of)


def use_own_table(database: Any, key: str) -> None:
    """Restrict a database of the harness to one model's table, created if absent."""
    database.tablename = f"answers {key}"
    database.conn.execute(
        f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
    )
    database.conn.commit()


def _described(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in OF_A_FOLDER}


def _tokens_of(tokenizer: Any) -> str:
    """Return a digest of the tokenizer and its chat template."""
    rules = tokenizer_rules(tokenizer) or json.dumps(tokenizer.get_vocab(), sort_keys=True)
    facts = [rules, str(tokenizer.special_tokens_map), str(tokenizer.chat_template)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()
