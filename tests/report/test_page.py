"""The report: well-formed, self-contained, honest about what it cannot show."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from person_search.errors import DatasetError
from person_search.evaluation.analysis import describe_breakdown, describe_protocol, query_rows
from person_search.evaluation.metrics import SearchOptions, evaluate_detection, evaluate_galleries
from person_search.evaluation.problem import SearchProblem, own_frame_galleries, with_galleries
from person_search.evaluation.storage import write_json
from person_search.report import MAX_STRIPS, write_report
from person_search.report.charts import Axis, Curve, line_chart, stairs
from person_search.report.strips import CELL_HEIGHT, CELL_WIDTH, build_strips
from PIL import Image

VOID = {"meta", "img", "br", "link", "path", "rect", "circle"}
FRAMES, QUERIES = 30, 70
HOSTILE = "<script>alert('&quot;')</script>\"><img src=http://x onerror=1>.png"


@dataclass
class Page(HTMLParser):
    """What a page is made of; every element has to be closed in order."""

    elements: list[tuple[str, dict]] = field(default_factory=list)
    text: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def read(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        assert page.open == []
        return page

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str, name: str | None = None) -> list[dict]:
        """Attributes of the elements of a tag, or of those of a class."""
        return [a for t, a in self.elements if t == tag and (name is None or name in (a.get("class") or "").split())]


def make_problem(frame_names=None) -> SearchProblem:
    """Frames of three cameras with five persons each, every one detected, some twice; features with noise."""
    rng = np.random.default_rng(0)
    frame, place = np.repeat(np.arange(FRAMES), 5), np.tile(np.arange(5), FRAMES)
    height = 40.0 + 30 * (frame % 3)
    box = np.stack([30.0 * place, np.full(len(frame), 5.0), 30.0 * place + 24, 5 + height], axis=1)
    person = (frame + place * 7) % 12
    prototype = rng.normal(size=(12, 16))
    query = rng.permutation(len(frame))[:QUERIES]
    twice = np.append(np.arange(len(frame)), np.arange(0, len(frame), 9))

    def feature(rows):
        value = prototype[person[rows]] + rng.normal(size=(len(rows), 16))
        return (value / np.linalg.norm(value, axis=1, keepdims=True)).astype(np.float32)

    problem = SearchProblem(
        det_frame=frame[twice], det_box=(box[twice] + rng.normal(size=(len(twice), 4))).astype(np.float32),
        det_score=rng.uniform(0.4, 1, len(twice)).astype(np.float32), det_feature=feature(twice),
        frame_name=tuple(frame_names or (f"f{i:02}.png" for i in range(FRAMES))),
        gt_frame=frame, gt_box=box, gt_person_id=person, query_frame=frame[query], query_box=box[query],
        query_person_id=person[query], query_feature=feature(query), frame_camera=np.arange(FRAMES) % 3,
    )  # fmt: skip
    galleries = {"all_cameras": own_frame_galleries(problem, False), "cross_camera": own_frame_galleries(problem, True)}
    return with_galleries(problem, galleries)


def evaluation(folder: Path, problem: SearchProblem, detection: bool = True) -> None:
    """The files that the evaluator leaves for a problem."""
    options = SearchOptions()
    results = evaluate_galleries(problem, options)
    found = evaluate_detection(problem)
    names = {"all_cameras": ["search"], "cross_camera": ["search_cross_camera"]}
    figures = {names[name][0]: result.metrics(100) for name, result in results.items()}
    if detection:
        figures["detection"] = {"AP": 100 * found.AP, "recall": 100 * found.recall}
    choices = {"query_feature": "ground_truth", "gallery": "detections" if detection else "ground_truth"}
    counts = {"frames": FRAMES, "annotated_boxes": 150, "queries": QUERIES}
    if detection:
        counts["detections"] = len(problem.det_frame)
    content = {
        "dataset": "crowd", "figures": figures, "protocol": describe_protocol("prw", names, choices, options),
        "left_out": {"50": "TestG50.mat is not there"}, "counts": counts,
    }  # fmt: skip
    write_json(folder / "results.json", content)
    write_json(folder / "breakdown.json", describe_breakdown(problem, results, options, detection))
    write_json(folder / "queries.json", query_rows(problem, results["all_cameras"]))


@pytest.fixture
def records(tmp_path) -> list[dict]:
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in range(FRAMES):
        Image.new("RGB", (160, 120), (8 * frame, 90, 200 - 6 * frame)).save(folder / f"{frame}.png")
    return [{"image_id": f"f{i:02}.png", "file_name": str(folder / f"{i}.png")} for i in range(FRAMES)]


def test_the_report_stands_alone(tmp_path, records):
    evaluation(tmp_path, make_problem())
    path = write_report(tmp_path, records)
    assert path == tmp_path / "report.html"
    text, page = path.read_text(encoding="utf-8"), Page.read(path)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    targets = {a["id"] for _, a in page.elements if "id" in a}
    assert all(a["href"][1:] in targets for a in page.all("a"))
    assert len(targets) == sum("id" in a for _, a in page.elements)
    assert all(a["alt"] for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert path.stat().st_size < 5_000_000
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_figures_protocol_and_parts_are_shown(tmp_path, records):
    problem = make_problem()
    evaluation(tmp_path, problem)
    text = " ".join(Page.read(write_report(tmp_path, records)).text.split())
    results, breakdown = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("results", "breakdown"))
    for row in results["figures"].values():
        assert all(f"{value:.1f}" in text for value in row.values())
    for gallery in breakdown["galleries"].values():
        for part in gallery["cameras"] + gallery["heights"]:
            assert f"{part['mAP']:.1f}{part['top1']:.1f}".replace(" ", "") in text.replace(" ", "")
    assert all(value in text for value in results["protocol"]["galleries"].values())
    assert results["protocol"]["searched"] in text and "TestG50.mat is not there" in text
    for words in ("cross camera", "By camera", "By height", "64 to 96", "Top-1 to top-20", "Detection: precision"):
        assert words in text
    assert "mAP against gallery size" not in text


def test_controls_stand_beside_the_network_and_mark_what_they_beat(tmp_path, records):
    evaluation(tmp_path, make_problem())
    results = json.loads((tmp_path / "results.json").read_text())
    own = results["figures"]["search"]
    results["controls"] = {"random": "random vectors", "color_histogram": "color histogram"}
    results["figures"]["control_random"] = {**own, "mAP": own["mAP"] - 1}
    for lead, marked in ((-1, False), (1, True)):
        results["figures"]["control_color_histogram"] = {**own, "mAP": own["mAP"] + lead}
        write_json(tmp_path / "results.json", results)
        page = Page.read(write_report(tmp_path, records))
        assert "random vectors" in page.text and "color histogram" in page.text and "this network" in page.text
        assert ("below the color histogram" in page.text) == marked


def test_strips_show_the_query_and_its_ten_best(tmp_path, records):
    evaluation(tmp_path, make_problem())
    page = Page.read(write_report(tmp_path, records, hardest=3, spread=2))
    rows = json.loads((tmp_path / "queries.json").read_text())
    assert len(page.all("article")) == 5
    hardest = sorted(range(QUERIES), key=lambda i: (rows[i]["AP"], -rows[i]["matches"]))[:3]
    shown = [int(a["id"].removeprefix("query-")) for a in page.all("article")]
    assert shown[:3] == hardest and len(set(shown)) == 5
    kinds = [a["class"] for a in page.all("li") if a.get("class")]
    expected = [["query", *("correct" if r["correct"] else "wrong" for r in rows[i]["results"])] for i in shown]
    assert kinds == [kind for strip in expected for kind in strip]
    assert {kind: len(page.all("rect", kind)) for kind in ("query", "correct", "wrong")} == {
        kind: kinds.count(kind) for kind in ("query", "correct", "wrong")
    }
    for result in rows[shown[0]]["results"]:
        assert f"sim. {result['similarity']:.3f}" in page.text
        assert ("not in frame" if result["iou"] is None else f"IoU {result['iou']:.2f}") in page.text
        assert result["frame"] in page.text
    image = page.all("img")[0]
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as crop:
        assert crop.size == (CELL_WIDTH, CELL_HEIGHT)
        color = np.asarray(crop)[100:130, 40:70].mean(axis=(0, 1))
    frame = int(rows[shown[0]]["frame"][1:3])
    np.testing.assert_allclose(color, (8 * frame, 90, 200 - 6 * frame), atol=6)


def test_the_number_of_strips_is_capped(tmp_path, records):
    evaluation(tmp_path, make_problem())
    page = Page.read(write_report(tmp_path, records, hardest=1000, spread=1000))
    assert len(page.all("article")) == 2 * MAX_STRIPS == 60
    assert Page.read(write_report(tmp_path, records, hardest=0, spread=0)).all("article") == []


def test_frames_that_cannot_be_read_are_said(tmp_path, records):
    (tmp_path / "frames" / "3.png").unlink()
    (tmp_path / "frames" / "4.png").write_bytes(b"no image")
    evaluation(tmp_path, make_problem())
    page = Page.read(write_report(tmp_path, records[:-1], hardest=30, spread=30))
    assert "3 of 30 frames cannot be read" in " ".join(page.text.split())
    assert "3.png: the image is missing" in page.text
    missing = page.text.count("The frame cannot be read.")
    assert missing == len(page.all("p", "missing")) > 3
    assert len(page.all("img")) + missing == 60 * 11


def test_without_any_image(tmp_path):
    evaluation(tmp_path, make_problem())
    page = Page.read(write_report(tmp_path, []))
    assert not page.all("img")
    assert page.text.count("The frame cannot be read.") == 20 * 11
    assert "is not in the dataset" in page.text


def test_hostile_names_stay_text(tmp_path):
    names = [f"{i}{HOSTILE}" for i in range(FRAMES)]
    evaluation(tmp_path, make_problem(names))
    results = json.loads((tmp_path / "results.json").read_text())
    results["dataset"] = "</title></h1>" + HOSTILE
    write_json(tmp_path / "results.json", results)
    Image.new("RGB", (160, 120)).save(tmp_path / "a.png")
    path = write_report(tmp_path, [{"image_id": name, "file_name": str(tmp_path / "a.png")} for name in names])
    page = Page.read(path)
    assert not page.all("script")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert HOSTILE in page.text
    assert HOSTILE in page.all("img")[0]["alt"]
    assert "<script" not in path.read_text()


def test_ground_truth_galleries_have_no_detection(tmp_path, records):
    evaluation(tmp_path, make_problem(), detection=False)
    page = Page.read(write_report(tmp_path, records))
    assert "Detection" not in page.text
    assert f"{QUERIES} queries, {FRAMES} frames, 150 annotated persons." in " ".join(page.text.split())
    assert "ground-truth boxes" in page.text
    assert len(page.all("svg", "chart")) == 2


def test_gallery_sizes(tmp_path, records):
    evaluation(tmp_path, make_problem())
    breakdown = json.loads((tmp_path / "breakdown.json").read_text())
    one = breakdown["galleries"]["all_cameras"]
    sizes = {"50": (50, 91.25), "100": (100, 88.5), "full": (6977, 70.75)}
    breakdown["galleries"] = {name: one | {"frames": n, "mAP": value} for name, (n, value) in sizes.items()}
    breakdown["main_gallery"] = "100"
    write_json(tmp_path / "breakdown.json", breakdown)
    page = Page.read(write_report(tmp_path, records))
    (label,) = [a["aria-label"] for a in page.all("svg", "chart") if a["aria-label"].startswith("mAP")]
    assert label == "mAP by the number of frames that are searched: 91.2 % in 50, 88.5 % in 100, 70.8 % in 6977."
    assert "mAP against gallery size" in page.text and "gallery of 100" in page.text


def test_the_main_figures_come_first_and_then_the_galleries_by_size(tmp_path, records):
    evaluation(tmp_path, make_problem())
    results = json.loads((tmp_path / "results.json").read_text())
    search = results["figures"]["search"]
    shown = ["search", "search_gallery_50", "search_gallery_100", "search_gallery_full"]
    found = results["figures"]["detection"]
    results["figures"] = {name: search for name in (shown[0], shown[2], shown[1], shown[3])} | {"detection": found}
    results["protocol"]["galleries"] = {name: name for name in (shown[1], shown[0], shown[2], shown[3])}
    write_json(tmp_path / "results.json", results)
    text = write_report(tmp_path, records).read_text()
    rows = re.findall(r'<tr><th scope="row">(search[^<]*)</th>', text)
    assert rows == [name.replace("_", " ") for name in shown]


def test_a_query_that_finds_nothing_and_one_without_a_match(tmp_path, records):
    evaluation(tmp_path, make_problem())
    rows = json.loads((tmp_path / "queries.json").read_text())
    rows[0] |= {"AP": 0.0, "matches": 99, "matches_found": 0, "first_correct_rank": None, "results": []}
    rows[1] |= {"AP": None, "matches": 0, "matches_found": 0, "first_correct_rank": None}
    write_json(tmp_path / "queries.json", rows)
    page = Page.read(write_report(tmp_path, records, hardest=30, spread=30))
    shown = [a["id"] for a in page.all("article")]
    assert shown[0] == "query-0" and "query-1" not in shown
    assert "0 of 99 matches found." in " ".join(page.text.split())
    assert page.text.count("Nothing was searched for it") == 1


def test_the_same_files_give_the_same_report(tmp_path, records):
    evaluation(tmp_path, make_problem())
    first = write_report(tmp_path, records).read_bytes()
    assert write_report(tmp_path, records).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", None, "results.json cannot be read"),
        ("breakdown.json", None, "breakdown.json cannot be read"),
        ("breakdown.json", "{", "is not the evaluator's breakdown.json"),
        ("breakdown.json", "{}", "are not what this version's evaluator writes"),
        ("results.json", "[]", "are not what this version's evaluator writes"),
        ("queries.json", "[]", "has no queries"),
    ],
)
def test_damaged_files_are_named(tmp_path, records, name, content, message):
    evaluation(tmp_path, make_problem())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        write_report(tmp_path, records)
    assert not (tmp_path / "report.html").exists()


def test_each_frame_is_read_once(tmp_path):
    rows = query_rows(make_problem(), evaluate_galleries(make_problem())["all_cameras"])
    read = []

    def read_frame(name):
        read.append(name)
        return np.zeros((120, 160, 3), np.uint8)

    strips = build_strips(rows[:20], read_frame)
    assert sorted(read) == sorted(set(read))
    assert len(read) == strips.num_frames
    assert [len(cells) for cells in strips.cells] == [11] * 20
    for row, cells in zip(rows, strips.cells, strict=False):
        assert [cell.entry["frame"] for cell in cells] == [row["frame"], *(r["frame"] for r in row["results"])]
        for cell in cells:
            x, y, width, height = cell.box
            assert 0 < x < x + width < CELL_WIDTH and 0 < y < y + height < CELL_HEIGHT


# ---------------------------------------------------------------------- charts


def points(svg: str) -> list[tuple[float, float]]:
    """The points of the first curve, in pixels."""
    (line,) = re.findall(r'<path d="M ([^"]+)" style="fill: none; stroke: var\(--blue\)', svg)
    return [tuple(map(float, pair.split())) for pair in line.split("L")]


def ticks(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def test_a_chart_puts_values_where_its_axes_say():
    curve = Curve("a", [0, 50, 100], [0, 100, 25])
    svg = line_chart([curve], Axis("x", (0, 100), ticks=(0, 50, 100)), Axis("y", (0, 100)), "d")
    (x0, y0), (x1, y1), (x2, y2) = points(svg)
    assert x1 - x0 == pytest.approx(x2 - x1) and x2 > x0
    assert y0 - y2 == pytest.approx((y0 - y1) / 4) and y1 < y0
    assert ticks(svg) == ["0", "50", "100", "x", "0", "20", "40", "60", "80", "100", "y"]


def test_a_logarithmic_axis_has_the_ticks_asked_for():
    log = Axis("n", (5, 2000), ticks=(10, 100, 1000), log=True)
    svg = line_chart([Curve("a", [10, 100, 1000], [1, 2, 3], labels=True)], log, Axis("y"), "d")
    (x0, _), (x1, _), (x2, _) = points(svg)
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert ticks(svg)[:4] == ["10", "100", "1000", "n"] and {"1.0", "2.0", "3.0"} < set(ticks(svg))


def test_a_chart_is_the_same_in_every_run_and_shares_no_name_with_another():
    curves = [Curve("a", [0, 1], [0, 1], markers=True), Curve("b", [0, 1], [1, 0], markers=True)]
    one, again, other = (line_chart(curves, Axis("x"), Axis("y"), words) for words in ("one", "one", "other"))
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert one == again and all(names) and not names[0] & names[1]
    assert set(re.findall(r'href="#([^"]+)"', one)) == names[0]


def test_colors_and_font_are_the_pages():
    curves = [Curve("a", [0, 1], [0, 1], filled=True), Curve("b", [0, 1], [1, 0], markers=True, labels=True)]
    svg = line_chart(curves, Axis("x"), Axis("y"), "d")
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert colors <= {"none", *(f"var(--{name})" for name in ("ink", "soft", "paper", "rule", "blue", "orange"))}
    assert "font" not in svg and "<style" not in svg and "url(" not in svg


def test_descriptions_are_escaped():
    axis = Axis("<x> $1", (0, 1), ticks=(0, 1))
    svg = line_chart([Curve("a&b", [0, 1], [0, 1]), Curve("<c>", [0, 1], [1, 0])], axis, axis, '"><script>')
    assert "<script>" not in svg and "<c>" not in svg and "<x>" not in svg
    assert "&lt;x&gt; $1" in svg and "a&amp;b" in svg


@pytest.mark.parametrize("values", [[0, 0], [100, 100], [3.2, 97.1], [99.97, 100]])
def test_percentages_stay_on_their_axis(values):
    svg = line_chart([Curve("a", [0, 1], values)], Axis("x", ticks=(0, 1)), Axis("%", percent=True), "d")
    numbers = [float(word) for word in ticks(svg) if word not in ("x", "%")]
    assert min(numbers) >= 0 and max(numbers) == 100
    assert all(18 < y < 224 for _, y in points(svg))  # within the plot


def test_stairs():
    assert stairs([0, 1, 3], [5, 2]) == ([0, 0, 1, 1, 3, 3], [0.0, 5, 5, 2, 2, 0.0])
