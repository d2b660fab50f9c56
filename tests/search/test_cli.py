"""The command line: answers at once, refuses in one line, and leads from footage to a sheet of hits."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import pytest
from person_search.search import commands
from person_search.search.cli import main, moment, parse_arguments, seconds
from person_search.search.store import open_store
from PIL import Image


def test_help_loads_no_heavy_package():
    code = (
        "import sys\nfrom person_search.search.cli import build_parser\nbuild_parser().format_help()\n"
        "heavy = ('torch', 'detectron2', 'numpy', 'av', 'lancedb', 'pyarrow', 'fastapi')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5s", Fraction(1, 2)), ("2", Fraction(2)), ("40ms", Fraction(1, 25)), ("1.5m", Fraction(90)), ("all", None)],
)
def test_intervals_are_exact(text, value):
    assert seconds(text) == value


def test_times_without_a_zone_are_local():
    assert moment("2024-05-01T12:00:00+02:00") == datetime(2024, 5, 1, 10, tzinfo=timezone.utc)
    assert moment("2024-05-01") == datetime(2024, 5, 1).astimezone()


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "a.mp4", "--weights", "w", "--store", "s", "--every", "0s"],
        ["index", "a.mp4", "--weights", "w", "--store", "s", "--start", "yesterday"],
        ["index", "a.mp4", "--weights", "w", "--store", "s", "--readers", "0"],
        ["search", "--store", "s"],
        ["search", "a.jpg", "--store", "s", "--sharper"],
        ["info"],
        [],
    ],
)
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_pictures_may_follow_a_box():
    args = parse_arguments(["search", "--store", "s", "a.jpg", "--box", "1", "2", "3", "4", "b.jpg"])
    assert args.queries == ["a.jpg", "b.jpg"] and args.box == [[1, 2, 3, 4]]


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory, write_video, walk, checkpoint) -> str:
    """A store into which a video was indexed on the command line."""
    folder = tmp_path_factory.mktemp("cli")
    write_video(folder / "gate.mp4", walk(0, 20), metadata={"creation_time": "2024-05-01T12:30:00Z"})
    uri = str(folder / "store")
    arguments = ["index", str(folder / "gate.mp4"), "--weights", str(checkpoint), "--store", uri, "--every", "0.2s"]
    assert main(arguments) == 0
    return uri


def test_a_search_prints_lines_and_writes_json_and_a_sheet(store_uri, checkpoint, walk, tmp_path, capsys):
    Image.fromarray(walk(0, 1)[0]).save(tmp_path / "query.png")
    capsys.readouterr()
    status = main([
        "search", str(tmp_path / "query.png"), "--box", "5", "40", "45", "130", "--weights", str(checkpoint),
        "--store", store_uri, "--top", "3", "--jsonl", str(tmp_path / "hits.jsonl"),
        "--html", str(tmp_path / "hits.html"),
    ])  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out.splitlines()
    assert "query.png" in printed[0] and len(printed) == 5
    rows = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3] and all(row["camera"] == "gate" for row in rows)
    assert rows[0]["start"].startswith("2024-05-01T12:30:0") and rows[0]["best"]["id"] in printed[2]
    page = (tmp_path / "hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and page.count('<li class="') == 4
    assert "http" not in page.replace("http-equiv", "")  # nothing comes from the network


def test_a_stored_detection_is_a_query_without_weights(store_uri, tmp_path, capsys):
    identity = next(open_store(store_uri).scan(columns=["id"]))["id"][0].as_py()
    assert main(["search", identity, "--store", store_uri, "--top", "1", "--html", str(tmp_path / "one.html")]) == 0
    assert identity in capsys.readouterr().out.splitlines()[2]
    assert (tmp_path / "one.html").read_text().count("data:image/jpeg;base64,") == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["search", "query.png"], "--weights"),
        (["search", "query.png", "--weights", "missing.pth"], "missing.pth"),
        (["export", "out.txt.zip"], "out.txt.zip"),
        (["forget"], "--before"),
        (["forget", "--camera", "gate"], "--yes"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(store_uri, arguments, named, capsys):
    capsys.readouterr()
    assert main([*arguments, "--store", store_uri]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and named in error and "\n" not in error


def test_another_model_is_refused(store_uri, checkpoint, tmp_path, capsys):
    import torch

    content = torch.load(checkpoint, weights_only=True)
    content["model"] = {k: v + 0.01 if v.is_floating_point() else v for k, v in content["model"].items()}
    torch.save(content, tmp_path / "other.pth")
    Image.new("RGB", (100, 100)).save(tmp_path / "query.png")
    arguments = ["search", str(tmp_path / "query.png"), "--weights", str(tmp_path / "other.pth"), "--store", store_uri]
    assert main(arguments) == 2
    assert "another model" in capsys.readouterr().err


def test_export_info_and_forget(store_uri, tmp_path, capsys):
    assert main(["export", str(tmp_path / "rows.jsonl"), "--store", store_uri]) == 0
    count = len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert open_store(store_uri).count() == count > 0
    capsys.readouterr()
    assert main(["info", "--store", store_uri]) == 0
    assert f"{count:,} detections" in capsys.readouterr().out
    assert main(["info", "--store", store_uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detections"] == count
    tracklet = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["tracklet"]
    assert main(["forget", "--person", tracklet, "--yes", "--store", store_uri]) == 0
    left = open_store(store_uri).count()
    assert 0 < left < count
    assert main(["forget", "--before", "2025-01-01", "--yes", "--store", store_uri]) == 0
    assert open_store(store_uri).count() == 0


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def fail(args):
        raise ModuleNotFoundError("No module named 'lancedb'", name="lancedb")

    monkeypatch.setitem(commands._COMMANDS, "info", fail)
    assert main(["info", "--store", "s"]) == 2
    assert "person_search_ssl[search]" in capsys.readouterr().err


def test_the_entry_point_is_installed(repository: Path):
    assert "person-search = person_search.search.cli:main" in (repository / "setup.cfg").read_text()
