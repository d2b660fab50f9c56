#!/usr/bin/env python3
"""Demo behind `make demo`: generates the built-in dataset, trains SSL on it and shows the results.

All output goes to output/demo; a second run starts over. Results are those of small synthetic scenes: they show that
the method learns to recognize persons there, and say nothing about any real dataset.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from person_search.data.catalog import dataset_root
from person_search.errors import PersonSearchError, exit_status
from person_search.evaluation.controls import HISTOGRAM, TITLES
from person_search.report.training_curves import Series, read_metrics
from person_search.synthetic import PRESETS, generate

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = Path("output/demo")
TRAIN = (
    "train_net.py --config-file projects/SSL/configs/demo.yaml --num-gpus 1"
    f" OUTPUT_DIR {OUTPUT} TEST.EVAL_BEFORE_TRAINING True"
)
DRAW = f"tools/draw_results.py {OUTPUT} --scenes 2"
# All files that a training, its evaluations and the drawing write to an output folder.
KNOWN_FILES = (
    "metrics.json* log.txt* config.yaml last_checkpoint *.pth .*.tmp *.part events.out.tfevents.* inference/*/*.json "
    "inference/*/*.html inference/*/*.npz inference/*/.*.tmp inference/*/*/*.npz inference/*/*/.*.tmp "
    "pictures/*.png pictures/.*.tmp pictures/*/*.png pictures/*/.*.tmp "
    # Store of the last stage, in LanceDB's files.
    "store/.lock store/*.lance/*/* store/*.lance/*/*/*"
).split()
FIGURES = ("detection/AP", "detection/recall", "search/mAP", "search/top1")
# Results of the runs in docs/synthetic.md, with a margin for other seeds and versions.
EXPECTED = {"detection/AP": 90.0, "search/mAP": 60.0, "search/top1": 85.0}
LEAST_LEAD = 15.0  # of the mAP of search over that of the color histogram
TO_LOOK_AT = {
    "inference/*/report.html": "the evaluation in a browser: metrics, curves, the hardest queries",
    "pictures/*/search_results.png": "queries and their five best detections, correct and wrong",
    "pictures/*/search_scenes_*.png": "the best and the worst query in whole frames",
    "pictures/loss_curves.png": "every loss and the learning rate",
    "pictures/pseudo_labels.png": "precision and recall of the pseudo labels over the epochs",
    "metrics.json": "every metric logged, one JSON object a line",
    "inference/*/results.json": "all metrics and settings of the evaluation",
    "inference/*/queries.json": "each query with its ten best detections",
    "model_final.pth": "the trained model, for --eval-only with MODEL.WEIGHTS",
}


def main() -> int:
    """Runs the demo and returns its exit status: 0, 2 for an error, 130 if interrupted."""
    os.chdir(REPOSITORY)
    print("SSL on synthetic scenes: dataset, training with an evaluation before and after it, pictures, an index.")
    print("Some 5 to 6 minutes on two CPU cores, most of them for the training, which shows its time left (eta).")
    return exit_status(demonstrate, "interrupted; `make demo` starts over")


def demonstrate() -> None:
    """Runs all stages, and prints the results and the time that each took."""
    seconds: dict[str, float] = {}
    clear_output(OUTPUT)
    _stage(seconds, "dataset", lambda: print(generate(PRESETS["demo"], dataset_root())))
    _stage(seconds, "training and evaluations", lambda: run(TRAIN))
    _stage(seconds, "pictures", lambda: run(DRAW))
    frames = dataset_root() / PRESETS["demo"].folder_name / "test"
    _stage(seconds, "index of the test frames", lambda: index(frames))
    print(f"\n{report(read_metrics(OUTPUT / 'metrics.json'), seconds)}\n\n{look_at(OUTPUT)}\n\n{page_command()}")


def clear_output(folder: Path) -> None:
    """Removes the output of an earlier run from a folder; a folder with any other file is left alone.

    Raises:
        PersonSearchError: the folder has a file that no run writes, or is a file itself.
    """
    found = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
    for path in found:
        if not any(_matches(path.relative_to(folder).parts, pattern.split("/")) for pattern in KNOWN_FILES):
            raise PersonSearchError(f"{path} is not from an earlier run; move it away, since {folder} is emptied first")
    for path in found:
        path.unlink()
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):  # content before its folder
        path.rmdir()


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def _stage(seconds: dict[str, float], name: str, work: Callable[[], None]) -> None:
    print(f"\n== {len(seconds) + 1} of 4: {name}", flush=True)
    start = time.monotonic()
    work()
    seconds[name] = time.monotonic() - start


def run(command: str) -> None:
    """Prints a command in a form that can be typed again, and runs it with this interpreter.

    Raises:
        PersonSearchError: it failed; it has printed the reason.
    """
    root = os.environ.get("DETECTRON2_DATASETS")
    setting = f"DETECTRON2_DATASETS={shlex.quote(root)} " if root else ""
    print(f"$ {setting}{shlex.quote(os.path.relpath(sys.executable))} {command}", flush=True)
    status = subprocess.run([sys.executable, *shlex.split(command)], check=False).returncode
    if status:
        raise PersonSearchError(f"{command.split()[0]} stopped with exit status {status}; see its message above")


def index(frames: Path) -> None:
    """Indexes frames with the trained model, for the page; without the extra [search], prints how to install it."""
    if importlib.util.find_spec("lancedb") is None:
        print("skipped: the page needs the extra [search]; `make setup` installs it")
        return
    run(f"-m person_search.search.cli index {shlex.quote(str(frames))} {_model_and_store()}")


def _model_and_store() -> str:
    return f"--weights {OUTPUT / 'model_final.pth'} --store {OUTPUT / 'store'}"


def page_command() -> str:
    """Command that opens the frames on a search page; "" if they are not indexed."""
    if not (OUTPUT / "store").is_dir():
        return ""
    program = shlex.quote(os.path.relpath(Path(sys.executable).with_name("person-search")))
    return (
        f"Search the test frames for a person on a page, on this machine only:\n  {program} serve {_model_and_store()}"
    )


def report(metrics: Mapping[str, Series], seconds: Mapping[str, float]) -> str:
    """Tables of metrics before and after training and of controls (metrics.json, in percent), and of wall times."""
    lines = [f"{'':<26}{'untrained':>11}{'trained':>11}"]
    figures = {key: [_last(metrics, name) for name in (f"untrained/{key}", key)] for key in FIGURES}
    for key, values in figures.items():
        cells = ("-" if math.isnan(value) else f"{value:.1f} %" for value in values)
        lines.append(f"{key.replace('/', ' ').replace('top1', 'top-1'):<26}" + "".join(f"{cell:>11}" for cell in cells))
    lines += ["", *_controls(metrics)]
    lines.append(f"\n{'wall time':<26}{'min:s':>11}")
    for name, time_taken in {**seconds, "all": sum(seconds.values())}.items():
        lines.append(f"{name:<26}{f'{round(time_taken) // 60}:{round(time_taken) % 60:02}':>11}")
    lead = figures["search/mAP"][1] - _last(metrics, f"control_{HISTOGRAM}/mAP")
    # Written so that a missing metric (NaN) does not count as reached.
    reached = all(figures[key][1] >= least for key, least in EXPECTED.items()) and lead >= LEAST_LEAD
    ap, own, top1 = EXPECTED.values()
    expected = f"detection AP {ap:g} %, search mAP {own:g} % and {LEAST_LEAD:g} above the histogram's, top-1 {top1:g} %"
    verdict = "Reached." if reached else "This run stays below; for results of others see docs/synthetic.md."
    lines.append(f"\nExpected at least: {expected}. {verdict}")
    return "\n".join(lines)


def _controls(metrics: Mapping[str, Series]) -> list[str]:
    """Lines on the same detections searched without re-id training, and on the lead of the trained network."""
    lines = [f"{'the same detections by':<26}{'mAP':>11}{'top-1':>11}"]
    for name, title in TITLES.items():
        values = [_last(metrics, f"control_{name}/{figure}") for figure in ("mAP", "top1")]
        if not math.isnan(values[0]):
            lines.append(f"{title:<26}" + "".join(f"{f'{value:.1f} %':>11}" for value in values))
    return lines


def _last(metrics: Mapping[str, Series], name: str) -> float:
    return float(metrics[name][1][-1]) if name in metrics else math.nan


def look_at(folder: Path) -> str:
    """List of the files of a run, and how to open TensorBoard."""
    lines = [f"  {path}: {meaning}" for pattern, meaning in TO_LOOK_AT.items() for path in sorted(folder.glob(pattern))]
    tensorboard = f"{os.path.relpath(Path(sys.executable).with_name('tensorboard'))} --logdir {folder}"
    return "\n".join(["What to look at:", *lines, f"  {tensorboard}: all curves in TensorBoard"])


if __name__ == "__main__":
    # There are no options: reject them before the results of an earlier run are removed.
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
