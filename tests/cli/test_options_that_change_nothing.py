"""Options that would change nothing are refused in one line that names them."""

from __future__ import annotations

from typing import Any

import pytest

from command import skipgpt
from runs import shared_checkpoint
from skipgpt.cli.shared.settings import for_stages
from skipgpt.errors import ConfigError
from skipgpt.serving.address import check_origins

CHECKPOINT = "CHECKPOINT"
BENCH = ("bench", "--shape", "llama-tiny", "--repeats", "1", "--prompt-tokens", "8")
TRAIN = ("train", "nano", "--data", "stdlib", "--out", "out")
SHOW_TEXT = {
    "--block-size": "256",  # given as the default, too
    "--max-tokens": "32",
    "--batch-size": "2",
    "--text-field": "x",
    "--quantize": "int8",
    "--base": "nosuch",
    "--sparsity": "0.1",
    "--budget": "flops",
    "--seed": "0",
    "--device": "cpu",
    "--dtype": "auto",
}
BITS = ("eval", CHECKPOINT, "--text", "README.md", "--form", "bits")
RUN = {  # of a text that is measured
    "--data": "stdlib", "--text-field": "x", "--sparsity": "0.1", "--budget": "flops",
    "--block-size": "256", "--max-tokens": "32", "--max-documents": "3", "--batch-size": "2",
    "--tasks": "piqa", "--task-dir": ".", "--limit": "3", "--base": "nosuch", "--seed": "0",
    "--device": "cpu", "--dtype": "auto", "--quantize": "int8",
}  # fmt: skip
CONVERT = ("convert", "nosuch.pth", "--base", "nosuch", "--out", "out")
CALIBRATION = {
    "--block-size": "256", "--text-field": "x", "--seed": "0", "--device": "cpu", "--dtype": "auto"
}  # fmt: skip
REFUSED = {
    **{("report", "--run", "out", *each): f"{each[0]}; expected --run" for each in RUN.items()},
    ("report", "--run", "out", "--control-tokens"): "--control-tokens; expected --run alone",
    **{(*CONVERT, *each): f"{each[0]}; expected --data" for each in CALIBRATION.items()},
    (*CONVERT, "--control-tokens"): "--control-tokens; expected --data beside it; give --data",
    **{("show", CHECKPOINT, name, value): f"{name};" for name, value in SHOW_TEXT.items()},
    ("show", CHECKPOINT, "--control-tokens"): "--control-tokens;",
    (*BITS, "--block-size", "32"): "--block-size; expected --window",
    ("eval", CHECKPOINT, "--corpus", "ptb", "--block-size", "32"): "--block-size; expected",
    ("eval", CHECKPOINT, "--corpus", "ptb", "--max-documents", "3"): "--max-documents; expected",
    (*BITS[:4], "--window", "8", "--block-size", "32"): "--block-size; expected --window",
    (*BENCH, "--phases", "prefill", "--decode-tokens", "4"): "--decode-tokens; expected the phase",
    (*BENCH, "--data", "README.md"): "--data; expected options of random weights",
    (*BENCH, "--text-field", "x"): "--text-field; expected options of random weights",
    (*TRAIN, "--stages", "fit", "--steps", "3"): "got '3'; expected none",
    (*TRAIN, "--stages", "fit", "--lr", "0.1"): "got '0.1'; expected none",
    (*TRAIN, "--stages", "router", "--steps", "3,4"): "a value for each of router_stage.steps",
    (*TRAIN, "--set", "stages=joint", "--steps", "3,4"): "a value for each of router_stage.steps",
    ("serve", CHECKPOINT, "--allow-origin", "chat.example"): "got 'chat.example'; expected scheme",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_would_change_nothing_is_refused(arguments: tuple[str, ...]) -> None:
    given = [str(shared_checkpoint()) if each is CHECKPOINT else each for each in arguments]
    done = skipgpt(*given)
    assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert REFUSED[arguments] in done.stderr


@pytest.mark.parametrize(
    ("stages", "keys"),
    [
        ("router", ["router_stage.steps"]),
        (("fit", "router", "lora"), ["router_stage.steps", "lora_stage.steps"]),
        (["fit", "lora"], ["lora_stage.steps"]),
        ("joint", ["router_stage.steps"]),
    ],
)
def test_values_go_to_the_stages_that_run_in_their_order(stages: Any, keys: list[str]) -> None:
    values = ["3", "4"][: len(keys)]
    assert for_stages("steps", ",".join(values), stages) == dict(zip(keys, values, strict=True))
    both = {"router_stage.learning_rate": "1", "lora_stage.learning_rate": "2"}
    assert for_stages("learning_rate", "1,2", "joint") == both


GOOD = ["*", "null", "https://chat.example", "http://localhost:3000", "app://-", "http://[::1]:80"]
BAD = ["chat.example", "https://chat.example/", "https://Chat.example", "https://", "https://a/b"]


def test_origins_are_as_browsers_send_them() -> None:
    check_origins(GOOD)
    for origin in BAD:
        with pytest.raises(ConfigError, match="reading the allowed origins: got"):
            check_origins(["*", origin])
