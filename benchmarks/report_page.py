"""Measure how large the page of a report gets, and when a browser first paints it.

Makes a checkpoint of a random base, 32 layers by default, reports on the standard library, and
opens the page from disk in headless Chromium; the median of several loads.

    python benchmarks/report_page.py
    python benchmarks/report_page.py --page report.html
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from record import parser_of
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.data import encode_stream, stdlib_documents
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.model.base import base_location
from skipgpt.model.surgery import add_routers
from skipgpt.report.gather import gather
from skipgpt.report.pages.page import to_html

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
PAINTS = """
const paint = performance.getEntriesByName("first-contentful-paint")[0];
const load = performance.getEntriesByType("navigation")[0];
return [paint ? paint.startTime : 0, load.loadEventEnd];
"""


def made(folder: Path, layers: int, tokens: int) -> str:
    """Make the page of a random checkpoint of this depth."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_location("nano"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = add_routers(
        LlamaForCausalLM.from_pretrained(folder / "base"), RouterConfig(normalize=True)
    ).eval()
    ids = encode_stream(stdlib_documents()[40:60], tokenizer).ids
    calibrate(model, ids[:8192].view(-1, 256), target=0.25)
    save(model, folder / "checkpoint", describe(model, str(folder / "base"), stages=("router",)))
    return to_html(gather(folder / "checkpoint", ["stdlib"], DataConfig(), max_tokens=tokens))


def paints(page: Path, loads: int) -> list[list[float]]:
    """Return milliseconds to the first contentful paint and to the end, for each load."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        raise SystemExit("no Chromium here: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser: Any = webdriver.Chrome(options=options, service=Service(driver))
        try:
            found = []
            for _ in range(loads):
                browser.get("about:blank")
                browser.get(page.as_uri())
                browser.execute_async_script("setTimeout(arguments[0], 500)")
                found.append(browser.execute_script(PAINTS))
            return found
        finally:
            browser.quit()


def main() -> None:
    """Make or take a page, open it, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--page", type=Path, help="a page that is there already")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--loads", type=int, default=9)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = asked.page or Path(folder, "report.html")
        if not asked.page:
            page.write_text(made(Path(folder), asked.layers, asked.tokens), encoding="utf-8")
        times = paints(page.resolve(), asked.loads)
        paint, load = (statistics.median(each) for each in zip(*times, strict=True))
        print(
            f"{page.stat().st_size / 1e6:.2f} MB; first paint {paint:.0f} ms, loaded {load:.0f} ms"
        )


if __name__ == "__main__":
    main()
