"""The training benchmark on a tiny model: which losses its rows have, and that its clocks add up."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage


@pytest.fixture(scope="module")
def program(repository: Path) -> dict[str, Any]:
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        return runpy.run_path(str(repository / "benchmarks" / "training_step.py"))
    finally:
        del sys.path[0]


@pytest.fixture
def small(narrow_cfg: CfgNode) -> CfgNode:
    narrow_cfg.merge_from_list(
        ["INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 160, "MODEL.RESNETS.NORM", "FrozenBN"]
    )
    return narrow_cfg


def test_rows_have_the_losses_of_the_papers_table_and_do_not_train(program, small):
    bench = program["Bench"](small, persons=2, boxes=40)
    weight = bench.model.backbone.stem.conv1.weight.clone()
    own = {"scale": {"loss_scale"}, "cluster": {"loss_cluster_instance"}, "multi_label": {"loss_multi_label_instance"}}
    for row, parts in program["ROWS"].items():
        bench.select(row)
        with EventStorage():
            losses = set(bench.model(bench.batch))
        expected = set().union(*(own[part] for part in parts))
        if "scale" in parts:  # with exemplars, the second bank has its losses too
            expected |= {name.replace("instance", "multi_scale") for name in expected if "instance" in name}
        assert {name for name in losses if name.split("_")[1] in ("scale", "cluster", "multi")} == expected
        bench.step(row)
    assert torch.equal(bench.model.backbone.stem.conv1.weight, weight)


@pytest.mark.parametrize(("mixed_precision", "tolerance"), [(False, 1e-3), (True, 0.05)])
def test_losses_and_gradients_on_a_gpu_are_those_of_a_cpu(program, small, gpu, mixed_precision, tolerance, monkeypatch):
    """All proposals and anchors are sampled, so that no random number plays a part."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    small.merge_from_list([
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**6),
        *("MODEL.RESNETS.NORM", "BN"),
    ])  # fmt: skip
    here = program["Bench"](small, persons=2, boxes=40)
    small.MODEL.DEVICE = gpu
    there = program["Bench"](small, persons=2, boxes=40)
    there.model.load_state_dict(here.model.state_dict())
    results = []
    for bench in (here, there):
        bench.select("all")
        with (
            EventStorage(),
            torch.autocast(bench.device.type, torch.float16, enabled=mixed_precision and bench is there),
        ):
            losses = bench.model(bench.batch)
        sum(losses.values()).backward()
        slopes = [p.grad.flatten().cpu() for p in bench.model.parameters() if p.grad is not None]
        results.append(({name: float(value) for name, value in losses.items()}, torch.cat(slopes)))
    (expected, slope), (found, found_slope) = results
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    if not mixed_precision:  # the gradient of an untrained network turns with its last bits
        assert torch.cosine_similarity(slope, found_slope, dim=0) > 1 - tolerance


def test_prints_figures_of_rows_and_parts(program, small, tmp_path, monkeypatch, capsys):
    (tmp_path / "small.yaml").write_text(small.dump())
    arguments = [
        "--config-file",
        str(tmp_path / "small.yaml"),
        "--rows",
        "cluster,all",
        "--rounds",
        "1",
        "--boxes",
        "40",
    ]
    monkeypatch.setattr(sys, "argv", ["training_step.py", *arguments, "MODEL.DEVICE", "cpu"])
    program["main"]()
    line = json.loads(capsys.readouterr().out)
    assert line["size"] == [90, 160] and line["batch"] == 2 and list(line["rows"]) == ["cluster", "all"]
    for row in line["rows"].values():
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"], rel=0.01)
        assert row["peak_mb"] > 100 and row["ratio"] == pytest.approx(
            row["seconds"] / line["rows"]["cluster"]["seconds"], rel=0.01
        )
    assert {"backbone", "heads", "heads/exemplars/backbone", "heads/exemplars/crops", "backward"} <= set(
        line["parts_ms"]
    )
    assert 0 < line["multi_label_share"] < 1


def test_mixed_precision_needs_a_gpu(program, small, tmp_path, monkeypatch, capsys):
    (tmp_path / "small.yaml").write_text(small.dump())
    options = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"]
    monkeypatch.setattr(sys, "argv", ["training_step.py", "--config-file", str(tmp_path / "small.yaml"), *options])
    with pytest.raises(SystemExit, match="SOLVER.AMP.ENABLED needs a GPU"):
        program["main"]()


@pytest.mark.parametrize("wrong", [["--rows", "cluster,none"], ["--rounds", "0"], ["--persons", "9", "--boxes", "5"]])
def test_refuses_what_it_cannot_measure(program, wrong, capsys):
    with pytest.raises(SystemExit):
        program["parse"](["--config-file", "x.yaml", *wrong])
    assert wrong[-2] in capsys.readouterr().err


def test_the_stopwatch_counts_no_part_in_another(program, monkeypatch):
    now = [0.0]

    class Work:
        def outer(self) -> None:
            now[0] += 2
            self.inner()
            now[0] += 1

        def inner(self) -> None:
            now[0] += 5

    work, stopwatch = Work(), program["stopwatch"]
    monkeypatch.setitem(stopwatch.__wrapped__.__globals__, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with stopwatch({"outer": (work, "outer"), "inner": (work, "inner")}, lambda: None) as seconds:
        work.outer()
        now[0] += 100
        work.inner()
    assert seconds == {"outer": 3, "outer/inner": 5, "inner": 5} and not vars(work)
