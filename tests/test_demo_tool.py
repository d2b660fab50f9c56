"""The demonstration and the drawing command: what they run, what they delete, and what they tell."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.config import get_cfg
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.data.registration import registered_records
from person_search.errors import PersonSearchError
from person_search.synthetic import PRESETS, generate, load_synthetic_protocol

from .programs import load_program

TINY = {"DATASETS.TRAIN": "('synthetic_tiny_train',)", "DATASETS.TEST": "('synthetic_tiny_test',)"}
# Two iterations on scenes of 144 x 256 pixels: enough for every file to appear.
SHORT = {
    **TINY, "SOLVER.MAX_ITER": 2, "SOLVER.LOG_PERIOD": 1, "SSL.CLUSTERING.K1": 8, "SSL.MEMORY.CALIBRATION_FRAMES": 2,
    "INPUT.MIN_SIZE_TRAIN": "(144,)", "INPUT.MAX_SIZE_TRAIN": 256,
    "INPUT.MIN_SIZE_TEST": 144, "INPUT.MAX_SIZE_TEST": 256,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4, "SSL.EXEMPLAR.SCALES": "((24,12),(48,24))",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
}  # fmt: skip


@pytest.fixture
def demo(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/demo.py, with the repository's place taken by an empty folder and the tiny scenes in it."""
    module = load_program(repository / "tools" / "demo.py")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module, "PRESETS", {"demo": PRESETS["tiny"]})
    monkeypatch.chdir(tmp_path)  # restores the folder that the demonstration leaves
    return module


@pytest.fixture
def draw(repository: Path) -> ModuleType:
    return load_program(repository / "tools" / "draw_results.py")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with the tiny scenes."""
    root = tmp_path_factory.mktemp("datasets")
    generate(PRESETS["tiny"], root, progress=False)
    return root


def series(**values: float) -> dict:
    return {name.replace("__", "/"): (np.array([0]), np.array([value])) for name, value in values.items()}


def figures(ap: float = 91.0, trained: float = 60.0, top1: float = 85.0, histogram: float = 30.2) -> dict:
    return series(
        untrained__detection__AP=0.04, untrained__detection__recall=1.0, untrained__search__mAP=10.0,
        untrained__search__top1=12.5, detection__AP=ap, detection__recall=95.55, search__mAP=trained, search__top1=top1,
        control_color_histogram__mAP=histogram, control_color_histogram__top1=84.9,
    )  # fmt: skip


def rows_of(text: str) -> dict[str, list[str]]:
    """Name of each line of the tables -> its cells."""
    lines = [line for line in text.splitlines() if line[26:].strip()]
    return {line[:26].strip(): [cell.strip() for cell in line[26:].split("  ") if cell.strip()] for line in lines}


# ---------------------------------------------------------------------- what it deletes


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


RUN_FILES = (
    "metrics.json", "log.txt", "log.txt.rank1", "config.yaml", "last_checkpoint", "model_0000079.pth",
    "model_final.pth",
    "events.out.tfevents.1795371292.host.1.0", "inference/synthetic_demo_test/queries.json",
    "inference/synthetic_demo_test/results.json", "inference/synthetic_demo_test/report.html",
    "pictures/loss_curves.png", "pictures/s/search_results.png", "store/.lock", "store/notes.lance/data/1.lance",
    "store/notes.lance/_indices/1/page_data.lance",
)  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_a_former_run_is_removed(demo, tmp_path):
    fill(tmp_path / "out", *RUN_FILES)
    demo.clear_output(tmp_path / "out")
    assert files_in(tmp_path / "out") == []
    demo.clear_output(tmp_path / "missing")


@pytest.mark.parametrize(
    "foreign",
    ["thesis.tex", ".git/config", "inference/notes.txt", "pictures/a/b/c.png", "sub/metrics.json", "x/json", ".hidden"],
)
def test_a_foreign_file_saves_the_folder(demo, tmp_path, foreign):
    fill(tmp_path / "out", *RUN_FILES, foreign)
    before = files_in(tmp_path / "out")
    with pytest.raises(PersonSearchError, match=f"{foreign} is not from an earlier run; move it away"):
        demo.clear_output(tmp_path / "out")
    assert files_in(tmp_path / "out") == before


def test_links_lead_nowhere(demo, tmp_path):
    fill(tmp_path / "elsewhere", "model.pth", "a.json")
    fill(tmp_path / "out", "metrics.json")
    (tmp_path / "out" / "inference").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PersonSearchError, match="inference is not from an earlier run"):
        demo.clear_output(tmp_path / "out")
    (tmp_path / "out" / "inference").unlink()
    (tmp_path / "out" / "best.pth").symlink_to(tmp_path / "elsewhere" / "model.pth")
    demo.clear_output(tmp_path / "out")
    assert files_in(tmp_path) == ["elsewhere/a.json", "elsewhere/model.pth"]


def test_a_file_in_the_folders_place_stays(demo, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(PersonSearchError, match="out is not from an earlier run"):
        demo.clear_output(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# ---------------------------------------------------------------------- what it runs


def test_the_command_is_printed_and_run(demo, capfd, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/my sets")
    demo.run("-c print(6*7)")
    out = capfd.readouterr().out.splitlines()
    assert out[0] == f"$ DETECTRON2_DATASETS='/data/my sets' {os.path.relpath(sys.executable)} -c print(6*7)"
    assert out[1] == "42"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    demo.run("-V")
    assert capfd.readouterr().out.startswith(f"$ {os.path.relpath(sys.executable)} -V")


def test_a_command_that_fails_is_told(demo, capfd):
    with pytest.raises(PersonSearchError, match="-c stopped with exit status 3; see its message above"):
        demo.run("-c raise(SystemExit(3))")


def test_the_training_command_is_what_it_says(demo, repository):
    script, *arguments = demo.TRAIN.split()
    assert (repository / script).is_file()
    assert (repository / demo.DRAW.split()[0]).is_file()
    options = arguments[arguments.index("1") + 1 :]
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, str(repository / arguments[arguments.index("--config-file") + 1]), options)
    assert Path(cfg.OUTPUT_DIR) == demo.OUTPUT == Path("output/demo")
    assert cfg.TEST.EVAL_BEFORE_TRAINING is True
    assert tuple(cfg.DATASETS.TRAIN) == ("synthetic_demo_train",)


def test_the_stages_run_in_order(demo, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    fill(tmp_path / "output" / "demo", "metrics.json", "model_final.pth")
    ran = []

    def fake(command: str) -> None:
        ran.append(command)
        if command == demo.TRAIN:
            assert files_in(Path("output/demo")) == []
            assert (tmp_path / "sets" / PRESETS["tiny"].folder_name / "test.json").is_file()
            lines = [{"iteration": 0, "untrained/search/mAP": 4.0}, {"iteration": 9, "search/mAP": 50.0}]
            Path("output/demo/metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif command == demo.DRAW:
            fill(Path("output/demo"), "pictures/loss_curves.png", "pictures/s/search_results.png")
        else:
            fill(Path("output/demo"), "store/notes.lance/data/1.lance")

    monkeypatch.setattr(demo, "run", fake)
    assert demo.main() == 0
    frames = tmp_path / "sets" / PRESETS["tiny"].folder_name / "test"
    assert frames.is_dir() and ran[:2] == [demo.TRAIN, demo.DRAW]
    model = "--weights output/demo/model_final.pth --store output/demo/store"
    assert ran[2] == f"-m person_search.search.cli index {frames} {model}"
    out = capfd.readouterr().out
    assert [out.index(f"== {n} of 4: {name}") for n, name in enumerate(("dataset", "training", "pictures", "index"), 1)]
    assert rows_of(out)["search mAP"] == ["4.0 %", "50.0 %"]
    looked, page = out[out.index("What to look at:") :].split("\n\n")
    assert page.rstrip().endswith(f"person-search serve {model}")
    listed = [line.strip().split(":")[0] for line in looked.splitlines()[1:]]
    assert listed[:-1] == [
        "output/demo/pictures/s/search_results.png", "output/demo/pictures/loss_curves.png", "output/demo/metrics.json"
    ]  # fmt: skip
    assert listed[-1].endswith("tensorboard --logdir output/demo")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [(PersonSearchError("no"), 2, "error: no"), (KeyboardInterrupt, 130, "interrupted; `make demo` starts over")],
)
def test_trouble_ends_in_one_line(demo, tmp_path, monkeypatch, capfd, raised, status, said):
    def fail(command: str) -> None:
        raise raised

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(demo, "run", fail)
    assert demo.main() == status
    assert said in capfd.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------------- what it tells


def test_the_table(demo):
    text = demo.report(figures(), {"dataset": 8.4, "training and evaluations": 199.6, "pictures": 61.0})
    table = rows_of(text)
    assert table["detection AP"] == ["0.0 %", "91.0 %"]
    assert table["detection recall"] == ["1.0 %", "95.5 %"]
    assert table["search mAP"] == ["10.0 %", "60.0 %"]
    assert table["search top-1"] == ["12.5 %", "85.0 %"]
    assert table["dataset"] == ["0:08"]
    assert table["training and evaluations"] == ["3:20"]
    assert table["all"] == ["4:29"]


@pytest.mark.parametrize(
    ("metrics", "reached"),
    [
        (figures(), True),
        (figures(ap=89.9), False),
        (figures(trained=59.9), False),
        (figures(trained=math.nan), False),
        (figures(top1=84.9), False),
        (figures(histogram=45.0), True),
        (figures(histogram=45.1), False),
        (figures(histogram=math.nan), False),
        ({}, False),
    ],
)
def test_what_is_expected(demo, metrics, reached):
    last = demo.report(metrics, {}).splitlines()[-1]
    assert last.startswith(
        "Expected at least: detection AP 90 %, search mAP 60 % and 15 above the histogram's, top-1 85 %."
    )
    assert last.endswith(" Reached.") == reached
    assert ("stays below" in last) != reached


def test_controls_stand_beside_the_network(demo):
    controls = series(control_random__mAP=4.0, control_random__top1=5.5)
    rows = rows_of(demo.report(figures() | controls, {}))
    assert rows["random vectors"] == ["4.0 %", "5.5 %"] and rows["color histogram"] == ["30.2 %", "84.9 %"]
    assert "backbone as it starts" not in rows


def test_missing_figures_are_dashes(demo):
    assert rows_of(demo.report({}, {}))["search mAP"] == ["-", "-"]


# ---------------------------------------------------------------------- drawing


@pytest.fixture
def run_dir(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a training on the tiny scenes leaves."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    cfg = get_cfg()
    add_ssl_config(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    lines = [{"iteration": i, "loss_scale": 1.0, "lr": 0.1, "pseudo_labels/clusters": 3} for i in (0, 8)]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    annotation = registered_records("synthetic_tiny_test")[0]
    query = load_synthetic_protocol(scenes / PRESETS["tiny"].folder_name).queries[0]
    box = annotation["annotations"][0]["bbox"]
    result = {"frame": annotation["image_id"], "box": box, "score": 0.9, "similarity": 0.5, "iou": 1.0, "correct": True}
    row = {"frame": query.image_id, "box": query.bbox, "AP": 1.0, "matches": 1, "matches_found": 1, "results": [result]}
    (tmp_path / "inference" / "synthetic_tiny_test").mkdir(parents=True)
    (tmp_path / "inference" / "synthetic_tiny_test" / "queries.json").write_text(json.dumps([row]))
    return tmp_path


CURVES = ["loss_curves.png", "pseudo_labels.png"]
SEARCH = ["synthetic_tiny_test/search_results.png", "synthetic_tiny_test/search_scenes_1.png"]


def test_everything_is_drawn(draw, run_dir, capsys):
    assert draw.main([str(run_dir), "--scenes", "1"]) == 0
    assert files_in(run_dir / "pictures") == CURVES + SEARCH
    assert sorted(capsys.readouterr().out.split()) == [str(run_dir / "pictures" / name) for name in CURVES + SEARCH]


@pytest.mark.parametrize("metrics", [None, ""])
def test_an_evaluation_has_no_curves(draw, run_dir, metrics):
    (run_dir / "metrics.json").unlink() if metrics is None else (run_dir / "metrics.json").write_text(metrics)
    assert draw.main([str(run_dir)]) == 0
    assert files_in(run_dir / "pictures") == SEARCH[:1]


def test_a_running_training_has_no_search_yet(draw, run_dir):
    shutil.rmtree(run_dir / "inference")
    assert draw.main([str(run_dir)]) == 0
    assert files_in(run_dir / "pictures") == CURVES


def test_the_clustering_period_comes_from_the_run(draw, run_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(draw, "draw_curves", lambda metrics, folder, period: seen.append(period) or [])
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("PERIOD: 1\n", "PERIOD: 3\n"))
    draw.main([str(run_dir), "--queries", "0"])
    assert seen == [3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.yaml").unlink(), "config.yaml is missing: give the OUTPUT_DIR"),
        (lambda d: (shutil.rmtree(d / "inference"), (d / "metrics.json").unlink()), "metrics.json cannot be read"),
        (lambda d: (shutil.rmtree(d / "inference"), (d / "metrics.json").write_text("")), "holds no metrics yet"),
        (lambda d: (d / "inference/synthetic_tiny_test").rename(d / "inference/other"), "other is not registered"),
        (lambda d: (d / "inference/synthetic_tiny_test/queries.json").write_text("["), "is not the evaluator's"),
        (
            lambda d: (d / "config.yaml").write_text("VERSION: 2\nSOLVER: {BASE_LRR: 1}\n"),
            "unknown config key SOLVER.BASE_LRR",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(draw, run_dir, capsys, damage, message):
    damage(run_dir)
    assert draw.main([str(run_dir)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert message in err[0]


@pytest.mark.parametrize("option", [["--queries", "-1"], ["--scenes", "x"]])
def test_numbers_that_are_none_are_refused(draw, run_dir, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        draw.main([str(run_dir), *option])
    assert stopped.value.code == 2
    assert "is not an integer of 0 or more" in capsys.readouterr().err


def test_own_datasets_of_the_run_are_known(draw, run_dir, scenes):
    folder = scenes / PRESETS["tiny"].folder_name
    cfg = get_cfg()
    add_ssl_config(cfg)
    files = {"JSON": str(folder / "test.json"), "IMAGES": str(folder / "test")}
    cfg.DATASETS.CUSTOM = [{"NAME": "demo_tool_own", "FORMAT": "coco", **files}]
    (run_dir / "config.yaml").write_text(cfg.dump())
    (run_dir / "inference" / "synthetic_tiny_test").rename(run_dir / "inference" / "demo_tool_own")
    assert draw.main([str(run_dir)]) == 0
    assert files_in(run_dir / "pictures") == sorted([*CURVES, "demo_tool_own/search_results.png"])


# ---------------------------------------------------------------------- all of it


def test_from_end_to_end(repository, tmp_path, scenes, monkeypatch, capfd):
    """The real commands on the tiny scenes; all that they leave is known to the next run."""
    monkeypatch.chdir(repository)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other take longest on such small tensors
    demo = load_program(repository / "tools" / "demo.py")
    monkeypatch.setattr(demo, "PRESETS", {"demo": PRESETS["tiny"]})
    output = tmp_path / "demo"
    options = " ".join(f"{key} {shlex.quote(str(value))}" for key, value in SHORT.items())
    # The small network of synthetic.yaml: the same programs in a third of the time.
    command = demo.TRAIN.replace("output/demo", str(output)).replace("demo.yaml", "synthetic.yaml")
    monkeypatch.setattr(demo, "TRAIN", f"{command} {options}")
    monkeypatch.setattr(demo, "DRAW", demo.DRAW.replace("output/demo", str(output)))
    monkeypatch.setattr(demo, "OUTPUT", output)
    assert demo.main() == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert "%" in rows_of(out)["search mAP"][-1] and "%" in rows_of(out)["detection AP"][-1]
    left = files_in(output)
    expected = ["metrics.json", "model_final.pth", "pictures/loss_curves.png", "pictures/pseudo_labels.png"]
    expected += [f"pictures/synthetic_tiny_test/{name}" for name in ("search_results.png", "search_scenes_1.png")]
    assert set(expected) <= set(left)
    assert any(name.startswith("events.out.tfevents") for name in left)
    for name in expected:
        assert f"{output}/{name}:" in out
    demo.clear_output(output)
    assert files_in(output) == []


def test_asking_the_demonstration_for_help_starts_nothing(repository, tmp_path):
    program = tmp_path / "tools" / "demo.py"  # beside nothing that it could train or delete
    program.parent.mkdir()
    shutil.copy(repository / "tools" / "demo.py", program)
    asked, unknown = (
        subprocess.run([sys.executable, str(program), word], capture_output=True, text=True, cwd=tmp_path)
        for word in ("--help", "--fast")
    )
    assert asked.returncode == 0 and "a second run starts over" in asked.stdout and not asked.stderr
    assert unknown.returncode == 2 and "unrecognized arguments: --fast" in unknown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]
