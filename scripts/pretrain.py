"""Pretrain a small base model: `nano`, which skipgpt carries, or others to try the method on.

Llamas that are deep and narrow on purpose: redundancy across depth is what skipgpt studies.
Hidden matrices are trained with Muon, everything else with AdamW; the learning rate is flat and
then falls to zero. The weights that are kept are those with the lowest held-out loss. Muon
computes in bfloat16, which takes most of the time on a CPU without such products; `--muon-lr 0`
leaves it out.

    python scripts/pretrain.py --out build/nano --minutes 80
    python scripts/pretrain.py --out build/novels --shape deep16 --data novels.txt --bf16

The schedule runs on the clock, so the number of steps depends on the machine; what a run did is
written beside the weights in `pretraining.json`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipgpt.config import DataConfig
from skipgpt.data import (
    Document,
    encode_stream,
    read_documents,
    split_documents,
    stdlib_documents,
)

SHAPES = {
    # name: (vocabulary, layers, width, MLP width, heads, key heads)
    "nano": (4096, 12, 160, 448, 5, 1),
    "deep12": (1024, 12, 64, 176, 4, 2),
    "deep16": (2048, 16, 128, 352, 4, 2),
    "deep24": (16384, 24, 512, 1536, 8, 4),
}
"""24, 24, 32 and 48 modules in 4.0 M, 0.6 M, 3.2 M and 84 M parameters; the last wants a GPU."""
END_OF_TEXT = "<|endoftext|>"
BLOCK = 512
HELD_OUT = 0.05
COMPARED = 40
"""Held-out documents that are compared with xz."""
DECAY_SHARE = 0.5


def train_tokenizer(documents: list[Document], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that every text has an encoding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def llama_config(shape: str) -> LlamaConfig:
    """A Llama of this shape, with tied embeddings."""
    vocabulary, layers, width, mlp_width, heads, key_heads = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width // heads,
        max_position_embeddings=2 * BLOCK,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def rate_at(progress: float) -> float:
    """Share of the peak learning rate at this share of the run: warm up, hold, fall to zero."""
    return min(1.0, progress / 0.02, (1 - progress) / DECAY_SHARE)


def next_token_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean nats per token of rows [B, T]."""
    logits = model(input_ids=batch).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: torch.nn.Module, blocks: torch.Tensor) -> float:
    """Nats a token over blocks [N, T]; each block is predicted on its own."""
    losses = [
        next_token_loss(model, batch.to(model.device)).item() * len(batch)
        for batch in blocks.split(16)
    ]
    return sum(losses) / len(blocks)


@torch.no_grad()
def total_nats(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Nats of a whole token stream [S], each token but the first seeing 256 tokens or more."""
    half, nats = BLOCK // 2, 0.0
    for start in range(0, max(1, len(ids) - half), half):
        window = ids[start : start + BLOCK][None].to(model.device)
        logits = model(input_ids=window).logits[0, :-1]
        fresh = 0 if start == 0 else half - 1
        nats += cross_entropy(logits[fresh:], window[0, fresh + 1 :], reduction="sum").item()
    return nats


def compare_with_xz(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> dict[str, float]:
    """Bits per byte on these documents: ours (each document from nothing) and `xz -9e`."""
    texts = [document.text.encode() for document in documents if document.text]
    size = sum(map(len, texts))
    nats = 0.0
    for document in documents:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(document.text)["input_ids"]])
        if len(ids) > 1:
            nats += total_nats(model, ids)
    preset = 9 | lzma.PRESET_EXTREME
    return {
        "documents": len(texts),
        "bytes": size,
        "model": nats / math.log(2) / size,
        "xz_each_file": 8 * sum(len(lzma.compress(text, preset=preset)) for text in texts) / size,
        "xz_one_archive": 8 * len(lzma.compress(b"".join(texts), preset=preset)) / size,
    }


def read_sources(sources: list[str]) -> list[Document]:
    """Documents of all sources; the standard library brings its tests along."""
    others = [source for source in sources if source != "stdlib"]
    documents = list(read_documents(others, DataConfig())) if others else []
    return documents + (stdlib_documents(with_tests=True) if "stdlib" in sources else [])


def is_test(document: Document) -> bool:
    """Whether a standard-library file is one of its tests."""
    return "/test" in f"/{document.name}"


def optimizers(
    model: LlamaForCausalLM, muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers unless its rate is 0, AdamW for all else."""
    if not muon_lr:
        return [torch.optim.AdamW(model.parameters(), lr=adam_lr, betas=(0.9, 0.95))]
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    """Tokenizer, training, and the comparison with xz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and tokenizer")
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--data", nargs="+", default=["stdlib"], help="text, as skipgpt reads it")
    parser.add_argument("--minutes", type=float, default=80, help="training time")
    parser.add_argument("--batch-size", type=int, default=16, help=f"blocks of {BLOCK} a step")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="0: AdamW alone")
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the best weights in --out"
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    train, held_out = split_documents(read_sources(options.data), HELD_OUT)
    held_out = [document for document in held_out if not is_test(document)]
    if options.resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out)
    else:
        tokenizer = train_tokenizer(train, SHAPES[options.shape][0])
        tokenizer.save_pretrained(options.out)
    train_ids = encode_stream(train, tokenizer).ids
    held_ids = encode_stream(held_out, tokenizer).ids
    held_blocks = held_ids[: len(held_ids) // BLOCK * BLOCK].view(-1, BLOCK)
    held_blocks = held_blocks[:: max(4, len(held_blocks) // 64)]
    print(f"{len(train)} documents, {len(train_ids):,} tokens; held out {len(held_ids):,}")

    record = options.out / "pretraining.jsonl"
    entries = [json.loads(line) for line in record.open()] if options.resume else []
    if options.resume:
        model = LlamaForCausalLM.from_pretrained(options.out)
    else:
        model = LlamaForCausalLM(llama_config(options.shape))
    model.to(options.device)
    print(f"{model.num_parameters():,} parameters")
    steppers = optimizers(model, options.muon_lr, options.adam_lr)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    best = min((entry["held_out"] for entry in entries), default=math.inf)
    step = first = max((entry["step"] for entry in entries), default=0)
    # A resumed run draws other rows, not the first ones again.
    generator = torch.Generator().manual_seed(options.seed + step)
    started = time.monotonic()
    log = record.open("a" if options.resume else "w")
    while (progress := (time.monotonic() - started) / (60 * options.minutes)) < 1:
        starts = torch.randint(len(train_ids) - BLOCK, (options.batch_size,), generator=generator)
        batch = torch.stack([train_ids[start : start + BLOCK] for start in starts])
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            loss = next_token_loss(model, batch.to(options.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * rate_at(progress)
            stepper.step()
            stepper.zero_grad()
        step += 1
        last = time.monotonic() - started >= 60 * options.minutes
        if step % 50 == 0 or last:
            held = mean_loss(model, held_blocks)
            entry = {"step": step, "train": loss.item(), "held_out": held, "progress": progress}
            print(json.dumps(entry), file=log, flush=True)
            print(f"{step:6d}  train {loss.item():.3f}  held out {held:.3f}  {progress:.0%}")
            sys.stdout.flush()
            if held < best:
                best = held
                model.save_pretrained(options.out)

    model = LlamaForCausalLM.from_pretrained(options.out).to(options.device)
    # The held-out side has no tests, so the gap is measured against training text without them.
    alike = encode_stream([d for d in train if not is_test(d)], tokenizer).ids
    sample = alike[: len(alike) // BLOCK * BLOCK].view(-1, BLOCK)
    sample = sample[torch.randperm(len(sample), generator=generator)[: len(held_blocks)]]
    summary = {
        "parameters": model.num_parameters(),
        "steps": step,
        "tokens": step * options.batch_size * BLOCK,
        "steps_of_last_run": step - first,
        "minutes_of_last_run": options.minutes,
        "train_tokens_available": len(train_ids),
        "nats_per_token_train": mean_loss(model, sample),
        "nats_per_token_held_out": mean_loss(model, held_blocks),
        "bits_per_byte": compare_with_xz(model, tokenizer, held_out[:COMPARED]),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    model.to(torch.bfloat16).save_pretrained(options.out)
    (options.out / "pretraining.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
