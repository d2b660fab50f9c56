"""Answers on the page in a browser: filters, marks, export, legibility, and who may see them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from person_search.search.serve.app import create_app
from person_search.search.serve.settings import ServeSettings

from .conftest import ColorSearcher, Served, draw, png
from .page import cards, expect, ready, upload

CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const named = 'p, h1, h2, h3, button, label, summary, legend, li, dt, dd, footer';
  for (const element of document.querySelectorAll(named)) {
    if (!element.innerText?.trim() || !element.offsetParent || element.disabled) continue;
    const pair = [rgb(getComputedStyle(element).color), ground(element)].map(luminance).sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) low.push(element.outerHTML.slice(0, 80));
  }
  return low;
}"""
NAMELESS = """() => [...document.querySelectorAll('button, input, select, [role=button], [role=application]')]
  .filter((e) => !e.hidden && !(e.innerText?.trim() || e.getAttribute('aria-label') || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 80))"""


def test_filters(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page(refusals=(422,))
    upload(page, two_people)
    page.locator("#editor-persons button").first.click()
    page.click("#filters summary")
    page.check("#cameras input[value=yard]")
    expect(page.locator("#filters-line")).to_have_text(": 1 camera")
    page.click("#search")
    expect(page.locator("#answer")).to_have_text("1 likely appearance on 1 camera.")
    page.uncheck("#cameras input[value=yard]")
    page.fill("#until", "2024-05-01T12:05:00")
    page.click("#search")
    expect(cards(page).locator(".where")).to_have_text(["gate"])
    page.fill("#since", "2024-05-01T13:00:00")
    page.click("#search")
    expect(page.locator("#alert")).to_have_text("Until: has to be later than since.")


def test_marks_refine_and_are_exported(open_page: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "reddish.png"
    file.write_bytes(png(draw([(0.99, 50, 60)])))
    page = open_page()
    upload(page, file)
    page.click("#search")
    expect(page.locator("#cards li")).not_to_have_count(0)
    similarity = float(page.locator("#cards .number").first.text_content())
    page.locator("#cards .right").first.click()
    page.locator("#cards .wrong").last.click()
    expect(page.locator("#refine-line")).to_have_text("1 right, 1 wrong")
    page.click("#refine-search")
    expect(page.locator("#refine-line")).to_have_text("1 right, 1 wrong (used)")
    assert float(page.locator("#cards .number").first.text_content()) > similarity
    expect(page.locator("#cards .right[aria-pressed=true]")).to_have_count(1)
    for form in ("csv", "jsonl", "html"):
        with page.expect_download() as download:
            page.click(f"[data-format={form}]")
        assert download.value.suggested_filename == f"appearances.{form}"
        download.value.save_as(tmp_path / form)
        assert (tmp_path / form).stat().st_size > 500
    rows = list(csv.DictReader((tmp_path / "csv").read_text("utf-8-sig").splitlines()))
    assert len(rows) == page.locator("#cards li").count() and rows[0]["mark"] == "right"
    page.click("#refine-clear")
    expect(page.locator("#refine")).to_be_hidden()


def test_contrast_in_both_themes(open_page: Callable[..., Any], two_people: Path) -> None:
    """Text against its ground, 4.5 to 1 at least, as WCAG AA asks."""
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        upload(page, two_people)
        page.locator("#editor-persons button").first.click()
        page.click("#search")
        expect(cards(page)).to_have_count(2)
        page.locator("#cards .right").first.click()
        page.locator("#cards .wrong").nth(1).click()
        page.click("#filters summary")
        assert page.evaluate(CONTRAST) == []


def test_everything_that_is_pressed_has_a_name(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page()
    upload(page, two_people)
    page.locator("#editor-persons button").first.click()
    page.click("#search")
    expect(cards(page)).to_have_count(2)
    assert page.evaluate(NAMELESS) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_sign_in(browser: Any, store: Any) -> None:
    settings = ServeSettings(token="correct-horse-battery-staple")
    with Served(create_app(store, ColorSearcher(), settings)) as address:
        for way in ("form", "link"):
            context = browser.new_context()
            page = context.new_page()
            if way == "form":
                page.goto(address)
                expect(page).to_have_url(f"{address}login")
                page.fill("#token", "wrong")
                page.click("text=Sign in")
                expect(page.locator("#alert")).to_have_text("This is not the token.")
                page.fill("#token", "correct-horse-battery-staple")
                page.click("text=Sign in")
            else:
                page.goto(f"{address}login#correct-horse-battery-staple")
            expect(page).to_have_url(address)
            ready(page)
            context.close()
