"""A headless Chromium that reads pages from disk, without a network."""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

TAB, LEFT, UP, RIGHT, DOWN = "\ue004", "\ue012", "\ue013", "\ue014", "\ue015"
END, HOME = "\ue010", "\ue011"
FOCUSED = "return document.activeElement.number"
"""Of the token that has the focus."""


@functools.cache
def _driver() -> Any:
    """One browser for all tests of a process; skips where none is installed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    profile = tempfile.mkdtemp(prefix="skipgpt-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    atexit.register(shutil.rmtree, profile, ignore_errors=True)
    atexit.register(started.quit)
    return started


@dataclass(frozen=True)
class Page:
    """A page that is open."""

    driver: Any
    address: str
    console: list[str]
    requests: list[str]

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of JavaScript `return` or of its last line."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """Elements."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        """The one element."""
        (found,) = self.all(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """What elements hold, seen or not."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def press(self, *keys: str) -> None:
        """Keys, to what has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def tool(self, command: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)


def opened(
    html: str | bytes,
    folder: Path,
    *,
    width: int = 1200,
    scheme: str = "light",
    media: str = "",
    scripts: bool = True,
) -> Page:
    """Write a page and open it from disk."""
    path = folder / "page.html"
    path.write_bytes(html.encode() if isinstance(html, str) else html)
    driver = _driver()
    driver.get("about:blank")
    for command, arguments in (
        ("Emulation.setScriptExecutionDisabled", {"value": not scripts}),
        (
            "Emulation.setEmulatedMedia",
            {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
        ),
        (
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        ),
    ):
        driver.execute_cdp_cmd(command, arguments)
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(path.as_uri())
    console = [entry["message"] for entry in driver.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return Page(driver, path.as_uri(), console, requests)


def agrees(shown: str, value: float | None) -> bool:
    """Whether a number as it is shown is this number, rounded to the digits that are shown."""
    if value is None:
        return shown == "\N{EN DASH}"
    found = re.search(r"[+\N{MINUS SIGN}-]?[\d,]*\.?\d+", shown)
    if not found:
        return False
    digits = found[0].replace(",", "").replace("\N{MINUS SIGN}", "-")
    scale = 0.01 if shown.strip().endswith("%") else 1.0
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if re.search(rf"\d {prefix}", shown):
            scale = size
    places = len(digits.partition(".")[2])
    return abs(float(digits) * scale - value) <= scale * (0.5 * 10.0**-places) * (1 + 1e-6)
