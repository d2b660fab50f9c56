"""A stand-in for train_net.py that leaves the files of a training within milliseconds, and does what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from person_search.reproduction.configs import base_config

# Figures follow from the config, so that a table can be computed by hand. Files beside the row's folder steer it:
# "fail" ends with an error, "hang" writes a checkpoint and waits to be killed.
FAKE = """
import json, os, sys, time
arguments = sys.argv[1:]
lines = open(arguments[arguments.index("--config-file") + 1]).read().splitlines()
def value(key, below=""):
    start = next((i for i, line in enumerate(lines) if line.strip() == below + ":"), 0)
    return next(line.split(":", 1)[1].strip() for line in lines[start:] if line.strip().startswith(key + ":"))
folder = value("OUTPUT_DIR")
above = next(i for i, line in enumerate(lines) if line.strip() == "TEST:" and line.startswith("  "))
test = lines[above + 1].strip(" -")
row = os.path.basename(os.path.dirname(folder))
steps = os.path.join(folder, "starts.txt")
with open(steps, "a") as f:
    f.write(("resumed" if "--resume" in arguments else "new") + " " + os.environ["OMP_NUM_THREADS"] + " "
            + os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\\n")
control = os.path.join(os.path.dirname(os.path.dirname(folder)), "control_" + row)
mode = open(control).read() if os.path.exists(control) else ""
if mode == "fail":
    print("a line before")
    sys.exit("error: no such thing as " + row)
with open(os.path.join(folder, "metrics.json"), "a") as f:
    f.write(json.dumps({"iteration": 7, "eta_seconds": 12.0, "lr": 0.1}) + "\\n")
open(os.path.join(folder, "last_checkpoint"), "w").write("model_0000007.pth")
if mode == "hang":
    print("hanging", flush=True)
    time.sleep(60)
seed = int(value("SEED"))
mAP = 10.0 * float(value("MARGIN", "SCALE_LOSS")) + 3.0 * seed ** 2 + (5.0 if row == "ssl" else 0.0)
out = os.path.join(folder, "inference", test)
os.makedirs(out, exist_ok=True)
figures = {"search": {"mAP": mAP, "top1": 50.0}, "detection": {"AP": 90.0, "recall": 95.0, "recall_labelled": None}}
json.dump({"figures": figures}, open(os.path.join(out, "results.json"), "w"))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The stand-in."""
    path = tmp_path / "fake_train_net.py"
    path.write_text(FAKE)
    return path


@pytest.fixture(scope="session")
def configs(repository: Path) -> Path:
    """The folder of config files."""
    return repository / "projects" / "SSL" / "configs"


@pytest.fixture
def base(configs: Path) -> CfgNode:
    """The config of the tiny scenes."""
    return base_config(configs, "synthetic_tiny", options=["MODEL.DEVICE", "cpu"])
