"""tools/report.py: the reports of a run, again, from what its evaluations have stored."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import get_cfg
from person_search import add_ssl_config
from person_search.evaluation import PersonSearchEvaluator
from person_search.report import page
from person_search.synthetic import PRESETS, generate
from person_search.synthetic.datasets import load_synthetic, load_synthetic_protocol

from .programs import load_program


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_program(repository / "tools" / "report.py")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --eval-only leaves for the tiny scenes; every person is found and looks like herself."""
    import torch
    from detectron2.structures import Boxes, Instances

    root, out = tmp_path_factory.mktemp("datasets"), tmp_path_factory.mktemp("run")
    folder = generate(PRESETS["tiny"], root, progress=False)
    records, protocol = load_synthetic(folder, "test"), load_synthetic_protocol(folder)
    subject = PersonSearchEvaluator(
        dataset_name="synthetic_tiny_test", records=records, protocol=protocol,
        output_dir=str(out / "inference" / "synthetic_tiny_test"),
    )  # fmt: skip
    for record in records:
        persons = [annotation["person_id"] + 1 for annotation in record["annotations"]]
        asked = [query.person_id + 1 for query in protocol.queries if query.image_id == record["image_id"]]
        looks = torch.eye(200)
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4))
        instances.scores = torch.ones(len(persons))
        instances.embeddings = looks[persons].reshape(-1, 200)
        subject.process([record], [{"instances": instances, "given_embeddings": looks[asked].reshape(-1, 200)}])
    subject.evaluate()
    cfg = get_cfg()
    add_ssl_config(cfg)
    (out / "config.yaml").write_text(cfg.dump())
    (out / "root").write_text(str(root))
    return out


@pytest.fixture(autouse=True)
def _datasets(run_dir, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", (run_dir / "root").read_text())


def test_the_report_of_the_evaluation_comes_out_again(tool, run_dir, capsys):
    path = run_dir / "inference" / "synthetic_tiny_test" / "report.html"
    before = path.read_bytes()
    assert before.count(b"<article") > 3 and b"cannot be read" not in before
    path.unlink()
    assert tool.main([str(run_dir)]) == 0
    assert path.read_bytes() == before
    assert capsys.readouterr().out.split() == [str(path)]
    assert tool.main([str(run_dir), "--hardest", "2", "--spread", "1"]) == 0
    assert path.read_bytes().count(b"<article") == 3


def test_what_cannot_be_written_is_told_in_one_line(tool, run_dir, capsys, tmp_path, monkeypatch):
    assert tool.main([str(tmp_path)]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    assert tool.main([str(tmp_path)]) == 2
    assert "has no evaluation" in capsys.readouterr().err
    queries = tmp_path / "inference" / "synthetic_tiny_test" / "queries.json"
    queries.parent.mkdir(parents=True)
    rows = json.loads((run_dir / "inference" / "synthetic_tiny_test" / "queries.json").read_text())
    queries.write_text(json.dumps(rows))
    assert tool.main([str(tmp_path)]) == 2
    assert "results.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--hardest", "-1"], ["--spread", str(page.MAX_STRIPS + 1)]])
def test_numbers_out_of_range_are_refused(tool, run_dir, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(run_dir), *option])
    assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
