from __future__ import annotations
import hashlib, sysconfig
from dataclasses import dataclass
from pathlib import Path
import torch

@dataclass(frozen=True)
class Document:
    name: str
    text: str
    group: str

def in_held_out(group: str, share: float) -> bool:
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64

def split_documents(documents, share):
    train, held_out = [], []
    for d in documents:
        (held_out if in_held_out(d.group, share) else train).append(d)
    return train, held_out

def stdlib_documents(with_tests=False):
    root = Path(sysconfig.get_paths()["stdlib"])
    out = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "__pycache__"} & set(parts): continue
        is_test = any(p in ("test", "tests", "idle_test") or p.startswith("test_") for p in parts)
        if is_test and not with_tests: continue
        try: text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError: continue
        stem = path.stem if path.stem != "__init__" else path.parent.name
        out.append(Document("/".join(parts), text, stem.removeprefix("test_").lstrip("_")))
    return out

def encode_documents(documents, tokenizer):
    ids = []
    for d in documents:
        ids.append(tokenizer.eos_token_id); ids.extend(tokenizer(d.text)["input_ids"])
    return torch.tensor(ids)
