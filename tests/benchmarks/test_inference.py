"""The inference benchmark as a program: its JSON line, the comparison with SeqNet's settings, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from ..programs import load_program


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> ModuleType:
    return load_program(repository / "benchmarks" / "inference.py")


@pytest.fixture
def arguments(narrow_cfg: CfgNode, tmp_path: Path) -> list[str]:
    (tmp_path / "config.yaml").write_text(narrow_cfg.dump())
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8))
        coarse.resize((256, 144), Image.Resampling.BILINEAR).save(tmp_path / name)
    return ["--config-file", str(tmp_path / "config.yaml"), "--frames", str(tmp_path), "--size", "144", "256"]


def run(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict:
    benchmark.main(arguments)
    (line,) = capsys.readouterr().out.strip().splitlines()
    return json.loads(line)


def test_every_stage_is_on_the_line(benchmark, arguments, capsys):
    line = run(benchmark, capsys, [*arguments, "--images", "3", "--persons", "4", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"])
    assert line["device"] == "cpu" and line["weights"] == "random" and line["size"] == [144, 256]
    assert line["images"] == 3 and line["proposals"] == 20 and line["settings"]["post_nms_topk"] == 20
    assert 0 < line["boxes_in_reid_head"] < 20
    assert tuple(line["milliseconds"]) == benchmark.STAGES and min(line["milliseconds"].values()) > 0
    # Stages add up to the whole: nothing is counted twice.
    assert sum(line["milliseconds"].values()) == pytest.approx(1000 / line["images_per_second"], rel=0.01)


def test_seqnet_s_settings_run_beside_those_asked_for(benchmark, arguments, capsys):
    options = ["MODEL.RPN.POST_NMS_TOPK_TEST", "20", "TEST.CHANNELS_LAST", "True", "TEST.FOLD_BATCH_NORM", "True"]
    line = run(benchmark, capsys, [*arguments, "--images", "1", "--against-seqnet", *options])
    ours, seqnet = line["ours"], line["seqnet"]
    assert ours["settings"]["channels_last"] and ours["settings"]["folded"]
    assert ours["proposals"] == 20 < seqnet["proposals"] <= 300
    assert seqnet["settings"] == {
        "pre_nms_topk": 6000, "post_nms_topk": 300, "rpn_nms": 0.7, "objectness": 0.0,
        "half_precision": False, "channels_last": False, "folded": False,
    }  # fmt: skip
    assert line["speedup"] == pytest.approx(ours["images_per_second"] / seqnet["images_per_second"], rel=0.01)


def test_stages_within_stages_count_once(benchmark):
    ticks = iter([0, 1, 3, 6, 10, 15])
    watch = benchmark.Stopwatch(benchmark.torch.device("cpu"), lambda: float(next(ticks)))
    with watch.stage("outer"):
        with watch.stage("inner"):
            pass
        with watch.stage("inner"):
            pass
    assert watch.seconds == {"outer": 1 + 3 + 5, "inner": 2 + 4}


def test_errors_are_one_line(benchmark, arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    place = arguments.index("--frames") + 1
    with pytest.raises(SystemExit, match="error: .*empty has no image file"):
        benchmark.main([*arguments[:place], str(tmp_path / "empty"), *arguments[place + 1 :]])
    with pytest.raises(SystemExit, match="error: weights nowhere.pth do not exist"):
        benchmark.main([*arguments, "--weights", "nowhere.pth"])
    with pytest.raises(SystemExit, match="error: unknown config key MODEL.RPN.TOPK"):
        benchmark.main([*arguments, "MODEL.RPN.TOPK", "3"])
