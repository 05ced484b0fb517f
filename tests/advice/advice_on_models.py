"""Commands that read a checkpoint or a base model: what is wrong with it, and what is advised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

from following import Told, told

LOADING = {
    "eval": "eval MODEL --text good.jsonl --block-size 16 --max-tokens 64 --no-closeness",
    "eval tasks": "eval MODEL --tasks numbers --task-dir tasks",
    "show": "show MODEL --text good.jsonl --block-size 16 --max-tokens 64",
    "report": "report MODEL --data good.jsonl --block-size 16 --max-tokens 64 -o r.json",
    "bench": "bench MODEL --data good.jsonl --prompt-tokens 8 --phases prefill --repeats 1 "
    "--sparsity 0.25 --executions sparse",
    "export static": "export MODEL --static --data good.jsonl --keep-rate 0.9 --block-size 16 "
    "--out small",
    "export merged": "export MODEL --merged --out whole",
    "generate": "generate MODEL a --max-new-tokens 2",
    "serve": "serve MODEL --port 0",
}
"""Every command that loads a checkpoint to use it."""
BASES = {
    "train": "train MODEL --data good.jsonl --out out TINY --recipe paper --stages router",
    "compare": "compare MODEL --data good.jsonl --out out FEW --methods dense",
    "convert": "convert routers.safetensors --base MODEL --out out",
}
"""Every command that begins with a base model."""
HEAL = "train MODEL --data good.jsonl --out out TINY --stages lora"
"""Training a checkpoint further."""
DRY = "train MODEL --dry-run --stages router"


def loading(
    module: str,
    advice: str,
    bad: str,
    *good: str,
    commands: Any = LOADING,
    before: Any = None,
    meanwhile: Any = None,
) -> Iterator[Told]:
    """One row per command: it fails on the model `bad`, and runs on each of `good`."""
    for line in commands.values() if isinstance(commands, dict) else commands:
        shell, _, model = bad.rpartition(" && ")
        fails = " && ".join(filter(None, (shell, line.replace("MODEL", model))))
        followed = []
        for each in good:
            *steps, model = each.split(" && ")
            followed.append(" && ".join([*steps, "skipgpt " + line.replace("MODEL", model)]))
        yield told(module, advice, fails, *followed, before=before, meanwhile=meanwhile)


def vllm_is_here() -> Any:
    """Let vLLM be installed; it is not started."""
    import importlib.machinery

    spec = importlib.machinery.ModuleSpec("vllm", None)
    return mock.patch("skipgpt.serving.engine_selection.find_spec", return_value=spec)


FOLDER = "model/loading/folder.py"
CHECK_ID = "check the path; a hub id needs the network, or its files in the cache"
WRITE = (
    'write where it lies now as "base" into …, or name it with --base (base=) where there is '
    "such an option"
)
ON_MODELS = [
    *loading(
        "checkpoint/folder.py", "copy the checkpoint again, or train it again", "damaged",
        "cp -rL checkpoint again && again",
        commands=[*LOADING.values(), HEAL],
    ),
    told(
        "checkpoint/folder.py", "copy the checkpoint again, or train it again",
        "cp -rL damaged out && generate out a --max-new-tokens 2",
        f"skipgpt {BASES['train'].replace('MODEL', 'base')} --overwrite && "
        "skipgpt generate out a --max-new-tokens 2",
    ),
    *loading(
        "checkpoint/loading.py", "pass the right base model with base= (--base)",
        "of-other", "of-other --base base",
    ),
    told(
        "checkpoint/loading.py", "write the path of the right base model as `base` into …",
        f"cp -rL of-other here && {HEAL.replace('MODEL', 'here')}",
        "sed -i 's|/other\"|/base\"|' <1> && skipgpt " + HEAL.replace("MODEL", "here"),
    ),
    *loading(
        FOLDER, WRITE, "cp -rL moved here && here",
        "sed -i 's|/nowhere\"|/base\"|' <1> && here",
        commands=[*LOADING.values(), HEAL, DRY],
    ),
    *loading(FOLDER, WRITE, "moved", "moved --base base"),
    *loading(
        FOLDER, "name the checkpoint that it was exported from", "merged", "checkpoint",
        commands={
            name: line.replace("--no-closeness", "")
            for name, line in LOADING.items()
            if name not in ("generate", "serve")
        },
    ),
    *(
        told(
            "checkpoint/loading.py", "leave out --base (base=)",
            f"{name} merged --base base {rest}", f"skipgpt {name} merged {rest}",
        )
        for name, rest in (("generate", "a --max-new-tokens 2"), ("serve", "--port 0"))
    ),
    *loading(
        FOLDER, "name the base model that it was made from: …", "checkpoint", "<1>",
        commands=[BASES["convert"]],
    ),
    *loading(FOLDER, "check the path", "./basse", "./base", commands=BASES),
    *loading("model/base.py", CHECK_ID, "in/basse", "./base", commands=BASES),
    *loading("checkpoint/folder.py", CHECK_ID, "in/checkpint", "checkpoint"),
    *loading("benchmark/shapes.py", "check the path", "./basse", "./base", commands=[DRY]),
    *loading(
        FOLDER,
        "name the base model; `skipgpt train` goes on with the checkpoint that it was exported "
        "from, and `skipgpt serve` and `skipgpt generate` run it as it is",
        "merged", "base", commands=BASES,
    ),
    told(
        FOLDER,
        "name the base model; `skipgpt train` goes on with the checkpoint that it was exported "
        "from, and `skipgpt serve` and `skipgpt generate` run it as it is",
        BASES["train"].replace("MODEL", "merged"),
        "skipgpt " + HEAL.replace("MODEL", "checkpoint"), "skipgpt serve merged --port 0",
        "skipgpt generate merged a --max-new-tokens 2",
    ),
    *loading(
        FOLDER, "export it once more without --format vllm",
        "skipgpt export checkpoint --static --data good.jsonl --keep-rate 0.9 --block-size 16 "
        "--format vllm --out small && small",
        "skipgpt export checkpoint --static --data good.jsonl --keep-rate 0.9 --block-size 16 "
        "--out smaller && smaller",
        commands=[BASES["train"], BASES["compare"]],
    ),
    *loading(
        "model/base.py",
        "copy tokenizer.json and tokenizer_config.json from the model that it was made from, or "
        "save that one's tokenizer there: tokenizer.save_pretrained(folder)",
        "cp -rL no-tokenizer here && here",
        "cp base/tokenizer.json base/tokenizer_config.json here && here",
        "base", commands=BASES,
    ),
    *loading(
        "config/budget.py",
        "give a sparsity beside it (--sparsity), or leave the budget out",
        "checkpoint --budget flops", "checkpoint --sparsity 0.1 --budget flops", "checkpoint",
        commands={k: v.replace("--sparsity 0.25 ", "") for k, v in LOADING.items()},
    ),
    *loading(
        "config/budget.py", "flops counts what skipping really saves",
        "checkpoint --sparsity 0.1 --budget flop", "checkpoint --sparsity 0.1 --budget flops",
    ),
    *loading(
        "routing/curve.py",
        "run `skipgpt profile` for these once, then load the model again",
        "checkpoint --sparsity 0 --budget time",
        "skipgpt profile && checkpoint --sparsity 0 --budget time",
        # Nothing can be removed where nothing is skipped.
        commands={k: v for k, v in LOADING.items() if k != "bench" and "--static" not in v},
    ),
    *loading(
        "config/budget.py", "0.25 saves a quarter of the …",
        "checkpoint --sparsity 25", "checkpoint --sparsity 0.25",
        commands={k: v for k, v in LOADING.items() if k != "bench"},
    ),
    *loading(
        "model/sparsity.py", "train it with `skipgpt train`, or call skipgpt.calibrate(model, "
                             "blocks)",
        "uncalibrated --sparsity 0.25", "checkpoint --sparsity 0.25",
        commands={k: v for k, v in LOADING.items() if k != "bench"},
    ),
    *(
        told(
            "model/loading/int8.py",
            "choose 8bit and 4bit when training: the checkpoint keeps them",
            f"{LOADING[name].replace('MODEL', 'checkpoint')} --quantize 8bit",
            BASES["train"].replace("train MODEL", "skipgpt train base --quantize 8bit")
            .replace("--out out", "--out eight")
            + " && skipgpt " + LOADING[name].replace("MODEL", "eight"),
        )
        for name in ("eval", "show", "report", "generate", "serve")
    ),
    told(
        "serving/engine_selection.py", "serve it with --engine transformers",
        "serve checkpoint --port 0 --engine vllm --quantize int8",
        "skipgpt serve checkpoint --port 0 --engine transformers --quantize int8",
        before=vllm_is_here, meanwhile=vllm_is_here,
    ),
    told(
        "serving/engine_selection.py", "use its own option, before the --",
        "serve checkpoint --port 0 -- --served-model-name cats",
        "skipgpt serve checkpoint --port 0 --name cats",
    ),
    told(
        "serving/engine_selection.py", "install vLLM, or leave them out",
        "serve checkpoint --port 0 -- --tensor-parallel-size 2",
        "skipgpt serve checkpoint --port 0",
    ),
    told(
        "serving/address.py", "give --allow-origin as the address bar begins",
        "serve checkpoint --port 0 --allow-origin https://chat.example/cats",
        "skipgpt serve checkpoint --port 0 --allow-origin https://chat.example",
    ),
    told(
        "serving/serve.py", "give --api-key (api_key=, SKIPGPT_API_KEY) a value, or leave it out",
        "serve checkpoint --port 0 --api-key ''",
        "skipgpt serve checkpoint --port 0 --api-key secret", "skipgpt serve checkpoint --port 0",
    ),
]  # fmt: skip
