"""One training of a table: its folder, what stands in it, and its result."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from detectron2.config import CfgNode

from ..errors import DatasetError, PersonSearchError
from ..evaluation.storage import write_json
from ..io import replacing
from .configs import config_digest, row_config
from .rows import Row

RESULT = "result.json"
EFFECTIVE_CONFIG = "effective.yaml"
OUTPUT_LOG = "output.txt"
_LOCK = ".lock"
# What a training with another config has left: none of it may reach the new one.
_LEFT_OVERS = (RESULT, "last_checkpoint", "*.pth", "metrics.json", "log.txt", OUTPUT_LOG, "events.out.tfevents.*",
               "inference/*/*.json", "inference/*/*.npz", "inference/*/*.html")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A row trained with one seed.

    Attributes:
        row: what is trained.
        seed: SEED of the training.
        folder: its OUTPUT_DIR.
        cfg: the effective config, frozen.
        digest: of that config, see `config_digest`.
    """

    row: Row
    seed: int
    folder: Path
    cfg: CfgNode
    digest: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def test_set(self) -> str:
        """Name of the dataset that is evaluated on."""
        return str(self.cfg.DATASETS.TEST[0])

    @property
    def inference(self) -> Path:
        """Folder of the evaluation's files."""
        return self.folder / "inference" / self.test_set


def plan_runs(rows: Sequence[Row], seeds: int, base: CfgNode, output: Path, configs: Path) -> list[Run]:
    """Every row with every seed, each row once, all rows with a seed before the next seed.

    Args:
        rows: those of a table or a sweep.
        seeds: trained with SEED 0 to seeds - 1.
        base: see `base_config`.
        output: folder below which <row>/seed_<n> lie.
        configs: folder of the config files.

    Raises:
        ConfigError: see `row_config`.
    """
    runs = []
    for seed in range(seeds):
        for row in {row.name: row for row in rows}.values():
            folder = output / row.name / f"seed_{seed}"
            cfg = row_config(base, row, seed, folder, configs)
            runs.append(Run(row, seed, folder, cfg, config_digest(cfg)))
    return runs


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none, or one of another config."""
    try:
        result = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
        same = result["config"] == run.digest
        return result if same and result["figures"]["search"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_result(run: Run, seconds: float | None) -> dict[str, Any]:
    """Keeps the figures of a run whose training and evaluation have ended well.

    Args:
        run: see `Run`.
        seconds: wall time of the training; None where it was resumed.

    Raises:
        DatasetError: the evaluation has left no figures.
    """
    file = run.inference / "results.json"
    try:
        figures: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"]
        figures["search"]["mAP"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file} holds no figures of a search ({error!r}), though the training ended well"
        ) from error
    result = {
        "row": run.row.name,
        "seed": run.seed,
        "dataset": run.test_set,
        "config": run.digest,
        "seconds": None if seconds is None else round(seconds, 1),
        "figures": figures,
    }
    write_json(run.folder / RESULT, result)
    return result


def prepare(run: Run) -> bool:
    """Makes the folder ready and says whether the training continues what stands in it.

    The effective config is written there. Where another one stands, everything of that training is removed first.
    """
    file, text = run.folder / EFFECTIVE_CONFIG, run.cfg.dump()
    same = file.is_file() and file.read_text(encoding="utf-8") == text
    if not same:
        for pattern in _LEFT_OVERS:
            for path in run.folder.glob(pattern):
                path.unlink()
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return same and (run.folder / "last_checkpoint").is_file()


def lock(run: Run) -> BinaryIO:
    """Takes the folder for this process, and for a child that inherits the file.

    So the folder stays taken while the training lives on, even where this process was killed.

    Raises:
        PersonSearchError: another process trains there.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        file = (run.folder / _LOCK).open("wb")
    except OSError as error:
        raise PersonSearchError(f"cannot write {run.folder}: {error.strerror}; check --output") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise PersonSearchError(
            f"{run.folder} is in use by another process that trains this row; wait for it or stop it"
        ) from error
    return file
