"""How much of the suite is tried, as the environment says; needs no library."""

from __future__ import annotations

import os

LONG = os.environ.get("SKIPGPT_LONG") == "1"
"""Whether the long suite runs."""

OLDEST = os.environ.get("SKIPGPT_OLDEST") == "1" and not LONG
"""Whether the oldest pins are tried: what differs there is the packages, so less will do."""
