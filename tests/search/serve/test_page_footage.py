"""Footage on the page in a browser: persons of a frame, photos, videos, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .page import cards, expect, ready, until, upload


def test_footage_is_searched_for_somebody_in_it(open_page: Callable[..., Any]) -> None:
    page = open_page()
    ready(page)
    page.click("#pick")
    expect(page.locator("#browse-note")).to_contain_text("person")
    page.select_option("#browse-camera", "gate")
    expect(page.locator("#browse-source")).to_contain_text("gate.mp4")
    expect(page.locator("#browse-new")).to_be_disabled()
    page.locator("#browse-frame").fill("15")
    expect(page.locator("#browse-note")).to_contain_text("12:00:03, 2 persons. Click one.")
    page.locator("#browse-stage .person").first.click()
    page.click("#browse-new")
    expect(page.locator("#answer")).to_have_text("1 likely appearance on 1 camera.")
    expect(page.locator("#cards .badge").first).to_contain_text("your query")
    # Somebody else in the frame of a result is the next query.
    page.locator("#cards .look").first.click()
    others = page.locator("#detail-stage .person:not(.chosen)")
    expect(others).to_have_count(1)
    others.click()
    page.click("#detail-join")
    expect(page.locator("#queries li")).to_have_count(2)
    page.click("text=✕ >> nth=0")
    expect(page.locator("#queries li")).to_have_count(1)


def test_photos_are_gone_through_one_after_the_other(open_page: Callable[..., Any]) -> None:
    page = open_page()
    ready(page)
    page.click("#browse-open")
    page.select_option("#browse-camera", "photos")
    expect(page.locator("#browse-source option")).to_have_count(5)
    expect(page.locator("#browse-note")).to_contain_text("1 person.")
    assert page.evaluate("document.querySelector('#browse-source').selectedOptions[0].text").startswith("<img src=x")
    page.click("#browse-forth")
    expect(page.locator("#browse-note")).to_contain_text("12 persons")


@pytest.mark.parametrize("camera", ["gate", "yard"])
def test_video_plays_at_the_moment(open_page: Callable[..., Any], two_people: Path, camera: str) -> None:
    """The MP4 as it is, the AVI encoded anew; the box follows the person."""
    page = open_page()
    upload(page, two_people)
    page.locator("#editor-persons button").first.click()
    page.click("#search")
    cards(page).filter(has_text=camera).locator(".look").click()
    page.click("#detail-play")
    video = page.locator("#detail-stage video")
    # Chromium builds without H.264 would not play either.
    if not page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"):
        pytest.skip("this Chromium does not play H.264")
    expect(video).to_be_visible()
    until(page, "document.querySelector('#detail-stage video').readyState >= 2")
    assert page.evaluate("document.querySelector('#detail-stage video').error") is None
    source = video.get_attribute("src")
    if camera == "gate":
        assert source.endswith("/video#t=0.000")
        base, moment = 0.0, 3.1
    else:
        assert source.endswith("/clip?start=2.000&end=13.000")
        base, moment = 2.0, 5.1
    page.evaluate(
        "time => { const v = document.querySelector('#detail-stage video'); v.pause(); v.currentTime = time; }", moment
    )
    expect(page.locator("#detail-stage .playing rect.line")).to_be_visible()
    until(page, f"Math.abs(document.querySelector('#detail-stage video').currentTime - {moment}) < 0.01")
    page.wait_for_timeout(200)
    first, last = (0, 6) if camera == "gate" else (4, 11)
    expected = 10 + 270 * (moment + base - first) / (last - first)
    assert abs(float(page.locator("#detail-stage .playing rect.line").get_attribute("x")) - expected) < 3
    page.keyboard.press("Escape")
    expect(video).to_have_count(0)


def test_store_forgets_after_a_second_word(open_page: Callable[..., Any], two_people: Path) -> None:
    page = open_page()
    upload(page, two_people)
    page.locator("#editor-persons button").first.click()
    page.click("#search")
    cards(page).filter(has_text="gate").locator(".right").click()
    page.click("#store-open")
    expect(page.locator("#store-facts")).to_contain_text("colors, 32 numbers a person")
    expect(page.locator("#forget-person-line")).to_have_text("The 1 appearance marked right")
    page.check("#forget-person")
    page.click("#forget button[type=submit]")
    confirm = page.locator("#forget-confirm")
    expect(confirm).to_have_text("Delete 31 detections for good")
    page.check("#forget input[value=cameras]")
    expect(confirm).to_be_hidden()  # another selection has to be counted again
    page.check("#forget-person")
    page.click("#forget button[type=submit]")
    confirm.click()
    expect(page.locator("#forget-note")).to_have_text("31 detections deleted.")
    page.keyboard.press("Escape")
    expect(page.locator("#answer-part")).to_be_hidden()
    upload(page, two_people)
    page.locator("#editor-persons button").first.click()
    page.click("#search")
    expect(page.locator("#answer")).to_have_text("1 likely appearance on 1 camera.")
