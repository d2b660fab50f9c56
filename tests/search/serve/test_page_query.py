"""The query on the page in a browser: by mouse, finger and keyboard, on a wide screen and on a phone's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conftest import draw, png
from .page import PHONE, at, cards, expect, no_sideways_scrolling, ready, upload


def test_search_by_mouse(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page()
    upload(page, two_people)
    page.click("#search")
    expect(page.locator("#alert")).to_have_text("Which person in two people.png? Click one or draw a box.")
    page.mouse.click(*at(page, 62, 90))
    expect(page.locator("#editor-help")).to_contain_text("Person 1 of 2 is chosen")
    page.click("#search")
    expect(page.locator("#answer")).to_have_text("2 likely appearances on 2 cameras.")
    expect(cards(page)).to_have_count(2)
    assert {text for text in cards(page).locator(".where").all_text_contents()} == {"gate", "yard"}
    expect(page.locator("#timeline .lanes span")).not_to_have_count(0)
    # Another box is drawn, around the blue person.
    page.mouse.move(*at(page, 176, 96))
    page.mouse.down()
    page.mouse.move(*at(page, 190, 130), steps=3)
    page.mouse.move(*at(page, 208, 164), steps=3)
    page.mouse.up()
    expect(page.locator("#editor-help")).to_contain_text("Box of 32 × 68 pixels")
    page.click("#search")
    expect(page.locator("#answer")).to_have_text("1 likely appearance on 1 camera.")


def test_corner_and_box_are_dragged(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page()
    upload(page, two_people)
    for start, end, size in (
        ((20, 20), (120, 120), "100 × 100"),
        ((120, 120), (140, 160), "120 × 140"),
        ((60, 60), (80, 90), "120 × 140"),
    ):
        page.mouse.move(*at(page, *start))
        page.mouse.down()
        page.mouse.move(*at(page, *end), steps=4)
        page.mouse.up()
        expect(page.locator("#editor-help")).to_contain_text(f"Box of {size} pixels")
    page.click("#search")
    expect(page.locator("#answer-part")).to_be_visible()


def test_search_by_keyboard_alone(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page()
    upload(page, two_people)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached by the Tab key")

    page.keyboard.press("Tab")
    tab_to("#editor-stage .person")
    outline = page.evaluate("getComputedStyle(document.activeElement.querySelector('.halo')).strokeWidth")
    assert outline == "9px"  # the focus is seen
    page.keyboard.press("Enter")
    expect(page.locator("#editor-help")).to_contain_text("Person 1 of 2 is chosen")
    tab_to("#editor-stage .pen")
    page.keyboard.press("Enter")
    expect(page.locator("#editor-help")).to_contain_text("Box of 64 × 144 pixels")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowLeft", "Shift+ArrowUp", "Shift+ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#editor-help")).to_contain_text("Box of 60 × 136 pixels")
    expect(page.locator(".pen")).to_have_attribute("aria-label", re.compile("^Box from 124,44 to 184,180"))
    tab_to("#editor-persons button")
    page.keyboard.press("Space")
    tab_to("#search")
    page.keyboard.press("Enter")
    expect(cards(page)).to_have_count(2)
    expect(page.locator("#results")).to_be_focused()
    tab_to("#cards .look")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("r")
    expect(page.locator("#detail-right")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-title")).to_contain_text("2. ")
    page.keyboard.press("w")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#refine-line")).to_have_text("1 right, 1 wrong")


def test_search_by_finger_on_a_phone(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page(PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    upload(page, two_people)
    no_sideways_scrolling(page)
    page.locator("#editor-stage").scroll_into_view_if_needed()
    page.touchscreen.tap(*at(page, 192, 130))
    expect(page.locator("#editor-help")).to_contain_text("Person 2 of 2 is chosen")
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *point: float) -> None:
        places = [dict(zip("xy", at(page, *point), strict=True))] if point else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    before = page.evaluate("scrollY")
    touch("touchStart", 48, 58)
    for step in range(1, 6):
        touch("touchMove", 48 + 6 * step, 58 + 13 * step)
    touch("touchEnd")  # in motion: the browser must make no fling of it, whose end would swallow the next tap
    expect(page.locator("#editor-help")).to_contain_text("Box of 30 × 65 pixels")
    assert page.evaluate("scrollY") == before  # the finger draws, the page stays
    page.tap("#search")
    expect(cards(page)).to_have_count(2)
    no_sideways_scrolling(page)
    assert page.locator("#answer").bounding_box()["y"] < PHONE["height"]  # the answer is in view
    for button in ("#search", "#cards .right >> nth=0", "#cards .look >> nth=0"):
        assert page.locator(button).bounding_box()["height"] >= 38
    page.tap("#cards .look >> nth=0")
    expect(page.locator("#detail")).to_be_visible()
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    page.tap("#detail-close")
    for opener, dialog in (("#browse-open", "#browse"), ("#store-open", "#store")):
        page.tap(opener)
        expect(page.locator(dialog)).to_be_visible()
        no_sideways_scrolling(page)
        page.keyboard.press("Escape")


def test_not_there_is_said(open_page: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "stranger.png"
    file.write_bytes(png(draw([(3 / 13, 50, 60)])))
    page = open_page()
    upload(page, file)  # one person: chosen without a click
    page.click("#search")
    expect(page.locator("#answer")).to_have_text("Not there")
    expect(page.locator("#answer-detail")).to_contain_text(
        "No appearance is likely this person. The closest has a similarity of"
    )
    expect(cards(page)).to_have_count(0)


def test_errors_are_one_line_and_the_page_goes_on(
    open_page: Callable[..., Any], tmp_path: Path, two_people: Path
) -> None:
    page = open_page()
    ready(page)
    page.click("#search")
    expect(page.locator("#alert")).to_have_text("Choose a picture first, or pick a person from the footage.")
    upload(page, two_people)
    expect(page.locator("#alert")).to_be_hidden()
