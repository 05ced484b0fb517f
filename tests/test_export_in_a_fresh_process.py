from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import skipgpt
from cases import CLOSE
from runs import logits, rows, shared_checkpoint
from skipgpt.checkpoint.loading import load
from skipgpt.model.state import use_rule
from skipgpt.routing.decision import Forced
from static_exports import A1, M0, export, make

FRESH = """
import sys
import torch
from transformers import AutoModelForCausalLM
tokens, static, merged = sys.argv[1:]

def run(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    with torch.no_grad():
        torch.save(model(torch.load(tokens)).logits, folder + ".logits")

run(static)
assert "skipgpt" not in sys.modules
run(merged, trust_remote_code=True, sparsity=0.5)
import skipgpt
for name in skipgpt.__all__:
    getattr(skipgpt, name)
print(*sys.modules)
"""


def test_a_process_that_never_heard_of_skipgpt_loads_both_kinds_of_export(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    static = export(checkpoint)
    assert list(Path(static.out).glob("*.py")) == []  # so it needs no remote code
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "merged")
    torch.save(rows(3), tmp_path / "tokens.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path / "tokens.pt", static.out, tmp_path / "merged"],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model, _ = load(checkpoint, merge=True)
    with use_rule(model, Forced.without(list(static.removed))):
        torch.testing.assert_close(torch.load(f"{static.out}.logits"), logits(model), **CLOSE)
    expected, _ = load(shared_checkpoint(), merge=True, sparsity=0.5)
    assert torch.equal(torch.load(tmp_path / "merged.logits"), logits(expected))
    # Nor did it take an optional package to load, or to import every public name.
    assert set(done.stdout.split()) & {"datasets", "lm_eval", "matplotlib", "vllm"} == set()
