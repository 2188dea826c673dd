"""Debian's Chromium on the Studio, for tests.

page = Page(browser, server.url); page.open("anatomy?model=quick"); page.click("#dissect button")
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.process import eventually

REFERENCE = Path(__file__).parent / "reference"
THUMBNAIL = (320, 200)
AXE = Path(os.environ.get("ROADKIT_AXE", Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"))


def start_browser():
    """Headless Chromium; skips the test where it or its driver is not installed."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed; `make test-studio` does it"
    )
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here; `make test-studio` installs Debian's")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Page:
    """The Studio in a browser, at one size and in one colour scheme."""

    def __init__(self, driver, url: str):
        self.driver, self.url = driver, url
        self.resize(1440, 900)
        self.scheme("light")
        driver.get_log("browser")  # what the test before left

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str) -> None:
        """'light' or 'dark', as the system prefers."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, panel: str = "") -> None:
        """Load the page afresh at a panel, and wait until it knows the server's model."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/studio#{panel}")
        self.until(
            lambda: (
                self.text("#model")
                and self.js("return !document.querySelector('main > section:not([hidden])[aria-busy]')")
            )
        )

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def later(self, code: str, *arguments):
        """A promise's value: `code` is the body of an async function."""
        call = """
            const done = arguments[arguments.length - 1];
            (async (...given) => {%s})(...arguments).then(done, (error) => done(`error: ${error}`));
        """
        return self.driver.execute_async_script(call % code, *arguments)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        found = self.all(selector)
        assert found, f"nothing matches {selector}"
        return found[0]

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector)

    def click(self, selector: str) -> None:
        element = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def fill(self, selector: str, value: object) -> None:
        """Set a field's value as typing or dragging would."""
        set_value = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.js(set_value, self.one(selector), str(value))

    def until(self, condition, *, seconds: float = 60) -> None:
        assert eventually(condition, seconds=seconds), self.text("body")[:2000]

    def columns(self, *expressions: str, prompt: str = "the quick brown", tokens: int = 12) -> None:
        """Open the playground with these columns."""
        from urllib.parse import urlencode

        fields = [("prompt", prompt), ("tokens", tokens), ("temperature", 0), ("seed", 1)]
        self.open("playground?" + urlencode([*fields, *(("column", one) for one in expressions)]))
        self.until(lambda: len(self.all(".column")) == len(expressions))

    def run(self) -> list[str]:
        """Press Run, wait for the end; every column's answer."""
        self.click("#run")
        self.until(lambda: self.js("return document.querySelector('#stop').disabled"))
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.texts(".column .answer")

    def complaints(self, *, refused: bool = False) -> list[str]:
        """Errors of the console; with `refused` without the answers 4xx that the test asked for."""
        entries = [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [entry["message"] for entry in entries if not (refused and "status of 4" in entry["message"])]

    def accessible(self) -> list[str]:
        """What axe finds of serious or critical impact: rule and element."""
        self.js(AXE.read_text())
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
        found = self.later("return await axe.run(document, {runOnly: given[0]})", rules)
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        return [
            f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
            for one in serious
            for node in one["nodes"]
        ]

    def differs(self, name: str) -> float:
        """Mean difference (0 to 255) of a screenshot from its reference picture, both small and grey."""
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("L").resize(THUMBNAIL)
        path = REFERENCE / f"{name}.png"
        if os.environ.get("ROADKIT_DRAW_REFERENCES"):
            REFERENCE.mkdir(exist_ok=True)
            picture.save(path, optimize=True)
        expected = np.asarray(Image.open(path), dtype=float)
        return float(np.abs(np.asarray(picture, dtype=float) - expected).mean())
