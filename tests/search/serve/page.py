"""What the tests do on the page: they wait for it, upload a picture, and point at places of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # a machine may be busy
PHONE = {"width": 390, "height": 844}


def ready(page: Any) -> None:
    expect(page.locator("#store-line")).to_contain_text("detections from 4 cameras in yard.store")


def upload(page: Any, file: Path) -> None:
    ready(page)
    page.set_input_files("#file", file)
    expect(page.locator("#editor")).to_be_visible()


def cards(page: Any, verdict: str = "likely") -> Any:
    return page.locator(f"#cards .card.{verdict}")


def at(page: Any, x: float, y: float) -> tuple[float, float]:
    """Place on the screen of a point of the query picture of 320 x 240 pixels."""
    box = page.locator("#editor-stage svg").bounding_box()
    return box["x"] + x / 320 * box["width"], box["y"] + y / 240 * box["height"]


def until(page: Any, condition: str) -> None:
    """Waits for a condition; the page's own rules forbid Playwright's way, which evaluates text there."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came true: {condition}")


def no_sideways_scrolling(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
