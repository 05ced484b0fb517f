"""Options and settings of commands that do not fit, and what their errors advise."""

from __future__ import annotations

from typing import Any
from unittest import mock

from advice_on_data import READING
from advice_on_models import LOADING
from following import told

GENERATE = "generate checkpoint a --max-new-tokens 2"
EVAL = "eval checkpoint --text good.jsonl --max-tokens 64 --no-closeness"
TASKS = "eval checkpoint --tasks numbers --task-dir tasks"
SHAPE = "bench --shape tiny --prompt-tokens 8 --phases prefill --repeats 1 --executions sparse"
TRAIN = "train base --data good.jsonl --out out TINY --recipe paper --stages router"
FIT = "train base --data good.jsonl --out out TINY --recipe default --stages fit"
HEAL = "train checkpoint --data good.jsonl --out out TINY --stages lora"
COMPARE = "compare base --data good.jsonl --out out FEW"
STATIC = f"{COMPARE} --methods angular --budget modules"
CONVERT = "convert routers.safetensors --base base --out out"
OPTIONS = "cli/shared/options.py"
READ_MORE = "give more text, or read more of it (--max-tokens)"
WITHOUT_FIT = "train such routers without a fit: --stages router,lora (compare: router@paper)"


def tiny_shape() -> Any:
    """Let there be a shape of a moment."""
    size = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 257,
    }  # fmt: skip
    return mock.patch.dict("skipgpt.benchmark.shapes.SHAPES", {"tiny": size})


ON_OPTIONS = [
    # generate
    told("cli/generate.py", "add --sample, or leave it out", f"{GENERATE} --seed 1",
         f"skipgpt {GENERATE} --seed 1 --sample", f"skipgpt {GENERATE}"),
    told("cli/generate.py", "add --sample, or leave it out", f"{GENERATE} --temperature 0.5",
         f"skipgpt {GENERATE} --temperature 0.5 --sample", f"skipgpt {GENERATE}"),
    told("cli/generate.py", "for greedy text leave out --sample and --temperature",
         f"{GENERATE} --sample --temperature 0", f"skipgpt {GENERATE}"),
    told("data/chat.py", "give a plain prompt: leave --chat out, or use /v1/completions",
         f"{GENERATE} --chat", f"skipgpt {GENERATE}"),
    told("model/loading/limits.py",
         "shorten the prompt to at most … tokens, or ask for at most … new tokens",
         f"generate checkpoint {'a' * 120} --max-new-tokens 20",
         f"skipgpt generate checkpoint {'a' * 108} --max-new-tokens 20",
         f"skipgpt generate checkpoint {'a' * 120} --max-new-tokens <2>"),
    # bench
    told("benchmark/subject.py", "leave --budget out, or give a checkpoint",
         f"{SHAPE} --budget flops", f"skipgpt {SHAPE}",
         "skipgpt " + LOADING["bench"].replace("MODEL", "checkpoint --budget flops"),
         before=tiny_shape, meanwhile=tiny_shape),
    told(OPTIONS, "leave it out", f"{SHAPE} --data good.jsonl", f"skipgpt {SHAPE}",
         before=tiny_shape, meanwhile=tiny_shape),
    told("cli/bench.py", "add one to --phases, or leave it out", f"{SHAPE} --decode-tokens 2",
         f"skipgpt {SHAPE.replace('prefill', 'prefill,decode')} --decode-tokens 2",
         f"skipgpt {SHAPE}", before=tiny_shape, meanwhile=tiny_shape),
    told("benchmark/bench.py", "give --prompt-tokens … (prompt_tokens=) or fewer",
         LOADING["bench"].replace("MODEL", "checkpoint").replace("tokens 8", "tokens 200"),
         "skipgpt " + LOADING["bench"].replace("MODEL", "checkpoint").replace("tokens 8",
         "tokens <1>")),
    told("benchmark/bench.py", "give fewer --decode-tokens",
         LOADING["bench"].replace("MODEL", "checkpoint").replace("prefill", "decode")
         + " --decode-tokens 200",
         "skipgpt " + LOADING["bench"].replace("MODEL", "checkpoint").replace("prefill", "decode")
         + " --decode-tokens 2"),
    told("benchmark/subject.py", "give more with --data",
         LOADING["bench"].replace("MODEL", "checkpoint").replace("good", "few").replace("tokens 8",
         "tokens 64"),
         "skipgpt " + LOADING["bench"].replace("MODEL", "checkpoint").replace("tokens 8",
         "tokens 64")
         + " --data few.jsonl"),
    told("benchmark/shapes.py", "shapes of a like name: …",
         "train llama-8b --dry-run --stages router --recipe paper",
         "skipgpt train <1> --dry-run --stages router --recipe paper"),
    # eval
    told(OPTIONS, "leave it out", f"{EVAL} --limit 2", f"skipgpt {EVAL}"),
    told(OPTIONS, "leave it out", f"{TASKS} --window 8", f"skipgpt {TASKS}"),
    told(OPTIONS, "leave it out", f"{EVAL} --form fixed --window 16 --block-size 16",
         f"skipgpt {EVAL} --form fixed --window 16"),
    told(OPTIONS, "leave it out",
         "eval checkpoint --corpus wikitext2 --text one.txt --window 16 --max-documents 2",
         "skipgpt eval checkpoint --corpus wikitext2 --text one.txt --window 16"),
    told(OPTIONS, "leave it out", "export checkpoint --merged --out whole --seed 1",
         "skipgpt export checkpoint --merged --out whole"),
    told("cli/show.py", "give --text FILE, or leave it out", "show checkpoint --sparsity 0.2",
         "skipgpt show checkpoint --sparsity 0.2 --text good.jsonl", "skipgpt show checkpoint"),
    told(OPTIONS, "…, or leave it out", "show checkpoint --max-tokens 9",
         "skipgpt show checkpoint --max-tokens 9 --text good.jsonl", "skipgpt show checkpoint"),
    told("evaluation/text_result.py", "leave --no-closeness out",
         f"{EVAL.replace('64', '0')} --block-size 64 --continuations 1",
         f"skipgpt {EVAL.replace('64 --no-closeness', '0')} --block-size 64 --continuations 1"),
    *(
        told("evaluation/continuations.py",
             "give more text, longer rows, or ask for fewer continuations",
             f"eval checkpoint --continuations 3 {bad}",
             *(f"skipgpt eval checkpoint {each}" for each in good))
        for bad, good in (
            ("--text one.txt --block-size 64",
            ["--text good.jsonl --block-size 64 --continuations 3"]),
            ("--text good.jsonl --block-size 16",
            ["--text good.jsonl --block-size 64 --continuations 3"]),
            ("--text good.jsonl --block-size 64 --max-tokens 128",
             ["--text good.jsonl --block-size 64 --max-tokens 128 --continuations 2"]),
        )
    ),
    told("evaluation/windows.py", "give more text, or a smaller window (--window)",
         f"{EVAL.replace('good.jsonl', 'one.txt')} --form fixed --window 100",
         f"skipgpt {EVAL.replace('--max-tokens 64', '')} --form fixed --window 100",
         f"skipgpt {EVAL.replace('good.jsonl', 'one.txt')} --form fixed --window 8"),
    *(
        told("evaluation/windows.py", READ_MORE, f"{line} --max-tokens 1", f"skipgpt {line}")
        for line in (READING[name].replace("DATA", "good.jsonl").replace("--max-tokens 64", "")
                     for name in ("eval", "show", "report"))
    ),
    told("evaluation/windows.py", READ_MORE,
         "eval checkpoint --text letter.txt --form sliding --no-closeness",
         "skipgpt eval checkpoint --text good.jsonl --form sliding --no-closeness"),
    told("evaluation/windows.py", READ_MORE,
         "eval checkpoint --text good.jsonl --form sliding --no-closeness --max-tokens 1",
         "skipgpt eval checkpoint --text good.jsonl --form sliding --no-closeness"),
    told("evaluation/corpora.py",
         "check the network and HF_HUB_OFFLINE, or give its file with --text",
         "eval checkpoint --corpus wikitext2 --window 16",
         "skipgpt eval checkpoint --corpus wikitext2 --window 16 --text one.txt"),
    *(
        told("evaluation/corpora.py",
             "give the corpus as it was published, or any other text without --corpus",
             f"eval checkpoint --corpus wikitext2 --window 16 --text {text}",
             "skipgpt eval checkpoint --corpus wikitext2 --window 16 --text one.txt",
             "skipgpt eval checkpoint --window 16 --text good.jsonl")
        for text in ("story.jsonl", "damaged.parquet")
    ),
    # tasks
    told("evaluation/harness/tasks.py", "or name tasks: --tasks (tasks=)",
         "eval checkpoint --suite papper",
         f"skipgpt {TASKS}"),
    told("evaluation/harness/tasks.py", "ask for …@… or fewer",
         f"{TASKS.replace('numbers', 'numbers@9')}",
         f"skipgpt {TASKS.replace('numbers', '<1>@<2>')}"),
    told("evaluation/harness/scoring.py",
         "leave the item out, or take a model with a longer context",
         TASKS.replace("numbers", "wide"),
         "mkdir left && grep -v yyy tasks/wide.jsonl > left/wide.jsonl && "
         "skipgpt eval checkpoint --tasks wide --task-dir left"),
    *(
        told("evaluation/harness/response_cache.py", advice, f"{TASKS} --use-cache {bad}", *(
            f"{each}skipgpt {TASKS} --use-cache {good}" for each, good in followed))
        for advice, bad, followed in (
            ("name another --use-cache", "empty.txt", [("", "answers")]),
            ("name another --use-cache", "empty.txt/c", [("", "answers")]),
            ("remove it, or name another --use-cache", "one-cache", [("", "answers")]),
        )
    ),
    told("evaluation/harness/response_cache.py", "remove it, or name another --use-cache",
         f"cp -rL one-cache mine && {TASKS} --use-cache mine",
         f"rm mine/answers-0.db && skipgpt {TASKS} --use-cache mine"),
    # report
    told("report/writing.py", "name it with --format",
         "report checkpoint --data good.jsonl --block-size 16 --max-tokens 64 -o r.txt",
         "skipgpt report checkpoint --data good.jsonl --block-size 16 --max-tokens 64 -o r.txt "
         "--format json"),
    told("report/writing.py", "name a file with -o; --json prints the numbers",
         "report checkpoint --data good.jsonl --block-size 16 --max-tokens 64 -o several "
         "--format json",
         "skipgpt report checkpoint --data good.jsonl --block-size 16 --max-tokens 64 -o r.json",
         "skipgpt report checkpoint --data good.jsonl --block-size 16 --max-tokens 64 --json"),
    # export
    *(
        told("export/checks.py", "pass --overwrite (overwrite=True) to replace it",
             f"skipgpt {line} && {line}", f"skipgpt {line} --overwrite")
        for line in ("export checkpoint --merged --out whole",
                     "export checkpoint --static --data good.jsonl --keep-rate 0.9 --block-size "
                     "16 --out small")
    ),
    told("export/checks.py", "name another folder", "export checkpoint --merged --overwrite "
         "--out uncalibrated",
         "skipgpt export checkpoint --merged --out whole"),
    told("export/choosing.py", "raise --keep-rate (keep_rate=) or --sparsity (sparsity=)",
         "export checkpoint --static --data good.jsonl --block-size 16 --out small --sparsity "
         "0.1 --keep-rate 0.01 --format vllm",
         "skipgpt export checkpoint --static --data good.jsonl --block-size 16 --out small "
         "--sparsity 0.1 --keep-rate 0.9 --format vllm",
         "skipgpt export checkpoint --static --data good.jsonl --block-size 16 --out small "
         "--sparsity 0.8 --keep-rate 0.3 --format vllm"),
]  # fmt: skip
