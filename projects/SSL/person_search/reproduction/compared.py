"""Finished trainings to compare in a figure, and common parts of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from matplotlib.figure import Figure

from ..engine.run_folder import config_of_run
from ..errors import ConfigError, DatasetError
from ..evaluation import SearchOptions, SearchProblem, load_problem
from ..io import replacing
from ..report.palette import BLACK, BLUE, BROWN, GREEN, PURPLE, VERMILION
from .rows import SSL, TABLES
from .runs import RESULT

Style = tuple[str, "str | tuple[int, tuple[int, ...]]", str]
"""Color, dashes and marker of a run."""
# Distinguishable in grey prints too.
STYLES: tuple[Style, ...] = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (BLACK, (0, (5, 1)), "v"),
    (BROWN, (0, (3, 1, 1, 1)), "P"),
)
_DPI = 130


def save_both(figure: Figure, stem: Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg, each atomically, and returns their paths.

    Raises:
        DatasetError: one cannot be written.
    """
    paths = []
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=_DPI)
        paths.append(path)
    return paths


_TITLES = {row.name: row.title for _, rows in TABLES.values() for row in rows} | {SSL.name: SSL.title}


@dataclass(frozen=True)
class Compared:
    """Trainings of one kind.

    Attributes:
        title: title in the legend.
        folders: OUTPUT_DIR of each seed.
    """

    title: str
    folders: tuple[Path, ...]

    def config(self) -> CfgNode:
        """Config of the first training; registers its custom datasets."""
        return config_of_run(self.folders[0])


def find_compared(output: Path, names: Sequence[str], default: Sequence[str]) -> list[Compared]:
    """Trainings to compare.

    Args:
        output: folder of the rows of tables.
        names: names of rows below `output`, or "TITLE=FOLDER" with the OUTPUT_DIR of a training; () for `default`.
        default: names of rows; missing ones are skipped.

    Returns:
        For a row the finished seeds (with result.json), for a folder the folder as it is.

    Raises:
        ConfigError: there is no such row or folder, nothing to compare, or two have the same title.
    """
    found = []
    for name in names or default:
        title, named, place = name.partition("=")
        if named and not title.strip():
            raise ConfigError(f"--runs {name}: give the training a title, as in TITLE=FOLDER")
        done = sorted((output / name).glob(f"seed_*/{RESULT}"))
        folders = [Path(place)] if named else [file.parent for file in done]
        folders = [folder for folder in folders if (folder / "config.yaml").is_file()]
        if folders:
            found.append(Compared(title if named else _TITLES.get(name, name), tuple(folders)))
        elif names:
            missing = Path(place) / "config.yaml" if named else output / name / "seed_*" / RESULT
            raise ConfigError(
                f"--runs {name}: {missing} is missing; name a row below --output whose training has finished, or "
                "TITLE=FOLDER with the output folder of a training"
            )
    titles = [one.title for one in found]
    if len(set(titles)) < len(titles):
        raise ConfigError(
            f"--runs: two trainings have the same title among {', '.join(titles)}; give each its own, TITLE=FOLDER"
        )
    if not found:
        raise ConfigError(
            f"{output} has no finished row of {', '.join(default)}: train --table 1 first, or give --runs"
        )
    return found


def evaluated_set(cfg: CfgNode) -> str:
    """Name of the dataset that a training was evaluated on."""
    return str(cfg.DATASETS.TEST[0])


def stored_problem(folder: Path, cfg: CfgNode) -> SearchProblem:
    """Search problem of a training's last evaluation.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    file = folder / "inference" / evaluated_set(cfg) / "problem.npz"
    if not file.is_file():
        raise DatasetError(
            f"{file} is missing: evaluate with TEST.PERSON_SEARCH.SAVE_PROBLEM True, as in tools/reproduce.py"
        )
    return load_problem(file)


def search_options(cfg: CfgNode) -> SearchOptions:
    """Search options of a training's config."""
    keys = cfg.TEST.PERSON_SEARCH
    return SearchOptions(keys.SCORE_THRESHOLD, keys.SCORE_WEIGHTED)
