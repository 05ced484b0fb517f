"""A digest of a JSON value, by which files and caches are told apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def json_digest(value: Any, digits: int = 16) -> str:
    """Return hex digits of the SHA-256 of a value as JSON; what JSON does not have counts as text.

    Example:
        >>> json_digest({"seed": 0})
        'de7d7744ccd7722e'
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
