"""Tables against figures computed by hand."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.reproduction.rows import PRW_ARXIV, Published
from person_search.reproduction.tables import TableRow, csv_table, flat_metrics, markdown_table, spread, write_tables


def row(name: str, values: dict[int, float], published=None, changes=None) -> TableRow:
    by_seed = {seed: {"search/mAP": value, "search/top1": 50.0} for seed, value in values.items()}
    return TableRow(name, name.upper(), by_seed, changes or {}, published or {})


# Means 12 and 16; squared distances from them 1 + 1 + 4 = 6 and 4 + 0 + 4 = 8, divided by 2.
FIRST = row("first", {0: 11.0, 1: 11.0, 2: 14.0}, {PRW_ARXIV: Published(18.8, 67.0)})
SECOND = row("second", {0: 14.0, 1: 16.0, 2: 18.0}, changes={"SSL.EXEMPLAR.ENABLED": False})
UNTRAINED = row("third", {})


def cells(text: str, title: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown():
    text = markdown_table([FIRST, SECOND, UNTRAINED], "Table 1", ["`command`"], seeds=3)
    assert cells(text, "FIRST") == ["FIRST", "12.0 ± 1.7", "50.0 ± 0.0", "-", "-", "", "3 of 3", "18.8 / 67.0"]
    # Seed by seed the gains are 3, 5 and 4.
    assert cells(text, "SECOND") == ["SECOND", "16.0 ± 2.0", "50.0 ± 0.0", "-", "-", "+4.0 ± 1.0", "3 of 3", "-"]
    assert cells(text, "THIRD") == ["THIRD", "-", "-", "-", "-", "-", "0 of 3", "-"]
    header = cells(text, "")
    assert header[-1] == "paper's own: PRW (arXiv text), mAP / top-1" and header[5] == "mAP gained over 'FIRST'"
    assert "`command`" in text and "no measurements of this project" in text
    assert "- SECOND: `SSL.EXEMPLAR.ENABLED False`" in text and "- FIRST: nothing" in text


def test_controls_stand_beside_each_row_and_mark_what_they_beat():
    def with_controls(name: str, own: float, histogram: float) -> TableRow:
        figures = {
            "search/mAP": own, "control_color_histogram/mAP": histogram, "control_color_histogram/top1": 90.0,
            "control_random/mAP": 14.0, "control_random/top1": 15.0,
        }  # fmt: skip
        return TableRow(name, name.upper(), {0: figures, 1: figures}, {}, {})

    rows = [with_controls("good", 80.0, 70.0), with_controls("poor", 30.0, 65.0), row("alone", {0: 9.0})]
    text = markdown_table(rows, "T", [], seeds=2)
    assert cells(text, "")[-2:] == [
        "same detections by random vectors, mAP / top-1", "same detections by color histogram, mAP / top-1"
    ]  # fmt: skip
    assert cells(text, "GOOD")[-2:] == ["14.0 ± 0.0 / 15.0 ± 0.0", "70.0 ± 0.0 / 90.0 ± 0.0"]
    assert cells(text, "POOR (**below the color histogram**)")[-1] == "65.0 ± 0.0 / 90.0 ± 0.0"
    assert cells(text, "ALONE")[-2:] == ["- / -", "- / -"]
    lines = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [line["control_color_histogram/mAP mean"] for line in lines] == ["70.0000", "65.0000", ""]


def test_without_published_figures_there_is_no_column_for_them():
    text = markdown_table([SECOND], "T", [], seeds=3)
    assert "paper" not in text


def test_one_seed_has_no_deviation():
    text = markdown_table([row("one", {0: 20.0}), row("other", {0: 18.5})], "T", [], seeds=1)
    assert cells(text, "ONE")[1] == "20.0"
    assert cells(text, "OTHER")[5] == "-1.5"


def test_gains_are_over_the_seeds_that_both_have():
    gain = row("a", {0: 14.0, 2: 18.0}).gain(row("b", {1: 10.0, 2: 11.0}))
    assert (gain.mean, gain.count) == (7.0, 1) and math.isnan(gain.deviation)


def test_csv_holds_the_same():
    lines = list(csv.DictReader(io.StringIO(csv_table([FIRST, SECOND, UNTRAINED]))))
    first, second, third = lines
    assert first["seeds"] == "0 1 2" and first["search/mAP of each seed"] == "11.0000 11.0000 14.0000"
    assert float(first["search/mAP mean"]) == 12.0
    assert float(first["search/mAP deviation"]) == pytest.approx(math.sqrt(3), abs=1e-4)
    assert (second["mAP gain mean"], second["mAP gain deviation"]) == ("4.0000", "1.0000")
    assert (first["paper: PRW (arXiv text), mAP"], second["paper: PRW (arXiv text), mAP"]) == ("18.8", "")
    assert (third["seeds"], third["search/mAP mean"], third["detection/AP of each seed"]) == ("", "", "")


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_spread_is_the_sample_deviation(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert spread(values).mean == pytest.approx(mean, abs=1e-9)
    assert spread(values).deviation == pytest.approx(deviation, abs=1e-6)


def test_figures_of_an_evaluation():
    figures = {"search": {"mAP": 12.5, "top1": None}, "detection": {"AP": 90}}
    assert flat_metrics(figures) == {"search/mAP": 12.5, "detection/AP": 90.0}


def test_files_are_replaced(tmp_path):
    write_tables(tmp_path, "table1", "old", "old")
    markdown, table = write_tables(tmp_path, "table1", "new", "a,b")
    assert (markdown.name, markdown.read_text()) == ("table1.md", "new")
    assert (table.name, table.read_text()) == ("table1.csv", "a,b")
    assert len(list(tmp_path.iterdir())) == 2
