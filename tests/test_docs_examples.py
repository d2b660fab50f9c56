"""Examples of the documentation: YAML is a config that can train, Python runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from person_search import get_config
from PIL import Image

from .processes import run_python

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "datasets/*.md", "projects/SSL/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
]
TINY = """
_BASE_: synthetic.yaml
INPUT: {MIN_SIZE_TRAIN: "(96,)", MAX_SIZE_TRAIN: 171, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 171}
SSL: {CLUSTERING: {K1: 8, K2: 3, MIN_SAMPLES: 2}, MEMORY: {CALIBRATION_FRAMES: 4}, EXEMPLAR: {SCALES: "((24, 12),)"}}
MODEL: {BOX_HEAD: {SCORE_THRESH_TEST: 0.0}, ROI_HEADS: {SCORE_THRESH_TEST: 0.0}}
"""


def blocks(page: Path) -> Iterator[str]:
    """Fenced and indented blocks of a page."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    yield from (textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n(?:^\n(?= {4}))?)+", text, re.MULTILINE))


def configs() -> list:
    found = []
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            try:
                values = yaml.safe_load(block)
            except yaml.YAMLError:
                continue
            if isinstance(values, dict) and values and all(str(key).isupper() for key in values):
                found.append(pytest.param(block, id=f"{page.relative_to(REPOSITORY)}-{number}"))
    return found


def python(page: str, word: str) -> str:
    """The one Python example of a page that has a word."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (found,) = [b for b in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if word in b]
    return found


def test_there_are_examples_of_configs() -> None:
    assert len(configs()) >= 3


@pytest.mark.parametrize("block", configs())
def test_a_config_inherits_and_trains_from_weights(block: str, tmp_path: Path) -> None:
    assert "_BASE_" in yaml.safe_load(block), "without a base it would be a random ResNet-50"
    (tmp_path / "own.yaml").write_text(block)
    cfg: CfgNode = get_config(str(tmp_path / "own.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE == "SSLPersonSearch" and cfg.MODEL.WEIGHTS
    assert {entry["NAME"] for entry in cfg.DATASETS.CUSTOM} >= {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the examples speak of: a mall whose frames are tiny, and a config small enough for them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "Base-SSL-EffLite2").write_text(TINY)  # a file of one's own comes before the package's
    (folder / "mall" / "images").mkdir(parents=True)
    for split, seed in (("train", 1), ("test", 9)):
        images, annotations = [], []
        for number in range(6):
            picture = Image.effect_noise((160, 120), 20 + seed).convert("RGB")
            for person, color in enumerate(("red", "blue", "green")):
                x, y = 8 + 50 * person + 2 * number, 20 + 5 * person
                picture.paste(color, (x, y, x + 20, y + 60))
                annotations.append({
                    "id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x, y, 20, 60],
                    "person_id": person,
                })  # fmt: skip
            picture.save(folder / "mall" / "images" / f"{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "height": 120, "width": 160})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        (folder / "mall" / f"{split}.json").write_text(json.dumps(content))
    shutil.copy(folder / "mall" / "images" / "test0.png", folder / "frame.jpg")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a program in the folder; gives what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield lambda *words: run_python(tmp_path_factory.mktemp("printed"), folder, *words)


@pytest.fixture(scope="module")
def trained(folder: Path) -> str:
    """What the example that trains has printed, in a Python that has imported nothing; its run lies in output/mall."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder)}
    command = [sys.executable, "-c", python("README.md", "register_coco_json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def custom(folder: Path, trained: str) -> Path:
    """The same folder, once the config of the run names its sets as DATASETS.CUSTOM does."""
    file = folder / "output" / "mall" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["DATASETS"]["CUSTOM"] = [
        {"NAME": f"mall_{split}", "FORMAT": "coco", "JSON": f"mall/{split}.json", "IMAGES": "mall/images"}
        for split in ("train", "test")
    ]
    file.write_text(yaml.safe_dump(values))
    return folder


def test_the_trainer_needs_ten_lines_and_no_set_up(folder: Path, trained: str) -> None:
    lines = [line for line in python("README.md", "register_coco_json").splitlines() if line]
    assert len(lines) - sum("import" in line for line in lines) <= 10
    figures = trained.splitlines()[-1].split()
    assert len(figures) == 2 and all(0 <= float(figure) <= 100 for figure in figures)
    assert "mall_test, in percent:" in trained and "30 iterations, 3 an epoch" in trained
    left = {path.name for path in (folder / "output" / "mall").iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "inference"} <= left


def test_what_is_printed_is_for_a_reader(folder: Path, trained: str) -> None:
    log = (folder / "output" / "mall" / "log.txt").read_text()
    printed = trained.splitlines()
    assert "PersonSearchROIHeads(" in log and "PersonSearchROIHeads(" not in trained  # the network
    assert "Serialized dataset" in log and "Serialized" not in trained
    assert "copypaste: " in log and "copypaste" not in trained
    assert "Calibration of the embedding's batch normalization: 1 of" in trained
    warnings = [line for line in printed if "WARNING" in line]
    # A single line each: there are no masks; the figures are below those of a histogram.
    assert len(printed) < 60 and not [w for w in warnings if "histogram" not in w and "no foreground masks" not in w]
    assert len([line for line in printed if "person_search 0" in line and "log.txt" in line]) == 1


@pytest.fixture(scope="module")
def detected(folder: Path) -> Path:
    """The example of a detector's boxes as a config, with MOT detections of a yard and COCO results of a gate."""
    (block,) = [param.values[0] for param in configs() if "RESULTS" in param.values[0]]
    (folder / "detected.yaml").write_text(block)
    (folder / "Base-SSL-EffLite2.yaml").write_text(TINY)  # beside the file, so before the package's
    annotated = json.loads((folder / "mall" / "train.json").read_text())
    for name in ("yard", "gate"):
        (folder / name / "frames").mkdir(parents=True)
        for image in annotated["images"]:
            source = folder / "mall" / "images" / image["file_name"]
            shutil.copy(source, folder / name / "frames" / f"{image['id'] + 1:06}.png")
    scores = (0.9, 0.6, 0.3)  # of the three persons of a frame
    boxes = [(entry["image_id"], entry["bbox"], scores[entry["person_id"]]) for entry in annotated["annotations"]]
    lines = [f"{frame + 1},-1,{','.join(map(str, box))},{score}" for frame, box, score in boxes]
    (folder / "yard" / "det.txt").write_text("\n".join(lines))
    images = [{"id": n, "file_name": f"{n + 1:06}.png"} for n in range(6)]
    (folder / "gate" / "images.json").write_text(json.dumps({"images": images}))
    found = [{"image_id": frame, "category_id": 1, "bbox": box, "score": score} for frame, box, score in boxes]
    (folder / "gate" / "found.json").write_text(json.dumps(found))
    return folder / "detected.yaml"


def test_a_detectors_boxes_train_a_model_and_measure_detection(run, folder: Path, detected: Path) -> None:
    program = [str(REPOSITORY / "train_net.py"), "--config-file", str(detected)]
    printed = run(*program, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", "output/detected")
    assert "12 frames with 24 persons" in printed and "search " in printed
    for counted in (
        "yard_train: 12 of 18 boxes of",
        "gate_train: 12 boxes used; skipped 6 below the score 0.6",
    ):
        assert printed.count(counted) == 1
    options = ["--eval-only", "--resume", "DATASETS.TEST", "('gate_train',)", "OUTPUT_DIR", "output/detected"]
    printed = run(*program, *options)
    assert "gate_train: search is not evaluated, since no person has an identity" in printed
    results = json.loads((folder / "output" / "detected" / "inference" / "gate_train" / "results.json").read_text())
    assert set(results["figures"]) == {"detection"} and results["counts"]["annotated_boxes"] == 12
    assert not [line for line in printed.splitlines() if "WARNING" in line]  # nor of what evaluation does not need


def test_detectron2s_predictor(run, trained: str) -> None:
    printed = run("-c", python("docs/detectron2.md", "DefaultPredictor"))
    assert "Boxes(tensor(" in printed and re.search(r"torch.Size\(\[[1-9]\d*, 256\]\)", printed)


def test_detectron2s_evaluator(run, custom: Path) -> None:
    printed = run("-c", python("docs/detectron2.md", "COCOEvaluator"))
    assert re.search(r"'AP50': [\d.]+", printed.splitlines()[-1])


def test_tracing(run, folder: Path, trained: str) -> None:
    run("-c", python("docs/detectron2.md", "TracingAdapter"))
    assert (folder / "model.ts").stat().st_size > 10_000


TOOL = """
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count_table
from detectron2.utils.visualizer import Visualizer
import detectron2.data.detection_utils as utils

args = default_argument_parser().parse_args()
cfg = get_cfg()
cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)
model = build_model(cfg).eval()
parameter_count_table(model, max_depth=5)
data = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
print("operations", FlopCountAnalysis(model, data).total())
record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
image = Visualizer(utils.read_image(record["file_name"], "RGB")).draw_dataset_dict(record).get_image()
print("drawn", image.shape)
"""


def test_programs_of_detectron2_run_in_three_lines(run, custom: Path) -> None:
    """A program that calls what analyze_model.py and visualize_data.py do; these come with a checkout of Detectron2."""
    lines = python("docs/detectron2.md", "runpy")
    assert len([line for line in lines.splitlines() if line]) == 3
    register = 'person_search.data.register_custom(person_search.get_config("output/mall/config.yaml").DATASETS.CUSTOM)'
    assert register in (REPOSITORY / "docs" / "detectron2.md").read_text()
    start = f"import person_search.data; {register}\nsys.argv.pop"
    (custom / "run_tool.py").write_text(lines.replace("sys.argv.pop", start, 1))
    (custom / "tool.py").write_text(TOOL)
    printed = run("run_tool.py", "tool.py", "--config-file", "output/mall/config.yaml", "MODEL.DEVICE", "cpu")
    assert float(re.search(r"operations ([\d.]+)", printed)[1]) > 1e6 and "drawn (120, 160, 3)" in printed
