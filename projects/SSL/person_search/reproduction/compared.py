"""Finished trainings that a figure compares, and what the figures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..engine.run_folder import config_of_run
from ..errors import ConfigError, DatasetError
from ..evaluation import SearchOptions, SearchProblem, load_problem
from ..io import replacing
from ..report.palette import BLUE, GREEN, PURPLE, VERMILION
from .rows import SSL, TABLES
from .runs import RESULT

# Colour, dashes and marker of each run, so that grey prints can be read.
STYLES = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#8C6D00", (0, (3, 1, 1, 1)), "P"),
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


def tidy(axes: Axes) -> None:
    """A light grid behind the data, no frame above and to the right, tick labels that can be read."""
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5)


_TITLES = {row.name: row.title for _, rows in TABLES.values() for row in rows} | {SSL.name: SSL.title}


@dataclass(frozen=True)
class Compared:
    """Trainings of one kind.

    Attributes:
        title: in the legend.
        folders: OUTPUT_DIR of each seed.
    """

    title: str
    folders: tuple[Path, ...]

    def config(self) -> CfgNode:
        """Config of the first training; registers its own datasets."""
        return config_of_run(self.folders[0])


def find_compared(output: Path, names: Sequence[str], default: Sequence[str]) -> list[Compared]:
    """The trainings to compare.

    Args:
        output: folder of the rows of tables.
        names: names of rows below `output`, or "TITLE=FOLDER" with the OUTPUT_DIR of a training; none: `default`.
        default: names of rows; those that are not there are left out.

    Returns:
        Of a row the seeds that are finished (result.json), of a folder whatever stands there.

    Raises:
        ConfigError: there is no such row or folder, nothing at all to compare, or two have one title.
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
                f"--runs {name}: {missing} is missing; name a row whose training below --output has ended, or "
                "TITLE=FOLDER with the output folder of a training"
            )
    titles = [one.title for one in found]
    if len(set(titles)) < len(titles):
        raise ConfigError(
            f"--runs: two trainings have one title among {', '.join(titles)}; give each its own, TITLE=FOLDER"
        )
    if not found:
        raise ConfigError(
            f"{output} holds none of the rows {', '.join(default)}, finished: train --table 1 first, or give --runs"
        )
    return found


def evaluated_set(cfg: CfgNode) -> str:
    """Name of the dataset that a training was evaluated on."""
    return str(cfg.DATASETS.TEST[0])


def stored_problem(folder: Path, cfg: CfgNode) -> SearchProblem:
    """The searched features and boxes of a training's last evaluation.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    file = folder / "inference" / evaluated_set(cfg) / "problem.npz"
    if not file.is_file():
        raise DatasetError(
            f"{file} is missing: evaluate with TEST.PERSON_SEARCH.SAVE_PROBLEM True, as tools/reproduce.py trains"
        )
    return load_problem(file)


def search_options(cfg: CfgNode) -> SearchOptions:
    """How a training's config compares features."""
    keys = cfg.TEST.PERSON_SEARCH
    return SearchOptions(keys.SCORE_THRESHOLD, keys.SCORE_WEIGHTED)
