from pathlib import Path

from skipgpt.system.digest import json_digest


def test_it_is_the_sha256_of_sorted_json() -> None:
    # printf '{"a": [2, null], "seed": 0}' | sha256sum
    whole = "ca0e725b13fa7cef847416762463c03f0af5b9d7ba7831227aecac95a192a16c"
    assert json_digest({"seed": 0, "a": (2, None)}, 64) == whole
    assert json_digest({"a": [2, None], "seed": 0}) == whole[:16]


def test_what_json_lacks_counts_as_its_text() -> None:
    assert json_digest(Path("a/b")) == json_digest("a/b") != json_digest("a/c")
