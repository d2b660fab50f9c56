"""Commands of tools/reproduce.py: a table or a sweep, from plan to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..data.registration import registered_records
from ..data.training_set import load_training_set
from ..engine.checks import check_config
from ..errors import ConfigError
from ..io import probe_folder
from ..progress import duration
from .configs import differing_keys
from .rows import PUBLISHED, TABLES, Published, Row, sweep_points
from .runner import Runner, own_cores, share, visible_gpus
from .runs import Run, plan_runs, read_result
from .sweep_figure import SweepPoint, draw_sweep
from .tables import TableRow, csv_table, flat_metrics, markdown_table, write_tables

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """Common settings of all trainings of a call.

    Attributes:
        base: config of the dataset, see `base_config`.
        output: folder of the rows and tables.
        configs: folder of the config files.
        script: train_net.py.
        seeds: number of trainings per row.
        jobs: number of parallel trainings.
        command: the call, to be printed beside the results.
    """

    base: CfgNode
    output: Path
    configs: Path
    script: Path
    seeds: int
    jobs: int
    command: str


def make_table(number: str, setting: Setting, say: Say = print) -> bool:
    """Trains the rows of a table of the paper and writes table<number>.md and .csv into the output folder.

    Returns:
        whether every row has been trained with every seed. The files are written in any case.

    Raises:
        ConfigError: a row's config is missing, invalid or cannot be trained, its weights are missing, or the output
            folder cannot be written; raised before any training.
        DatasetError: the data cannot be read; raised before any training.
    """
    title, rows = TABLES[number]
    runs = _plan(rows, setting)

    def write(ended: bool) -> list[Path]:
        table = _table_rows(rows, runs, setting.base, PUBLISHED[number])
        heading = f"Table {number}, {title}: {_dataset(setting.base)}"
        text = markdown_table(table, heading, _about(setting, runs), setting.seeds)
        return write_tables(setting.output, f"table{number}", text, csv_table(table))

    return _train(runs, setting, write, say)


def make_sweep(words: Sequence[str], setting: Setting, say: Say = print) -> bool:
    """Trains the points of a sensitivity sweep and writes sweep.md, .csv, .png and .svg into the output folder.

    Args:
        words: see `sweep_points`.
        setting: see `Setting`.
        say: prints a line.

    Returns:
        whether every point has been trained with every seed.

    Raises:
        ConfigError: see `sweep_points` and `make_table`.
        DatasetError: see `make_table`.
    """
    points = sweep_points(words, setting.base)
    rows = list({row.name: row for values in points.values() for row in values.values()}.values())
    runs = _plan(rows, setting)

    def write(ended: bool) -> list[Path]:
        measured = {row.name: row for row in _table_rows(rows, runs, setting.base, {})}
        table = sorted(measured.values(), key=lambda row: row.name != "ssl")
        heading = f"Sensitivity: {_dataset(setting.base)}"
        text = markdown_table(table, heading, _about(setting, runs), setting.seeds)
        files = write_tables(setting.output, "sweep", text, csv_table(table))
        if not ended:
            return files
        panels = {
            parameter: [SweepPoint(v, measured[row.name].spread("search/mAP")) for v, row in values.items()]
            for parameter, values in points.items()
        }
        defaults = {parameter: parameter.default(setting.base) for parameter in points}
        return files + draw_sweep(panels, defaults, _dataset(setting.base), setting.output)

    return _train(runs, setting, write, say)


def _plan(rows: Sequence[Row], setting: Setting) -> list[Run]:
    runs = plan_runs(rows, setting.seeds, setting.base, setting.output, setting.configs)
    for run in runs:
        try:
            check_config(run.cfg)
        except ConfigError as error:
            raise ConfigError(f"row {run.row.name}: {error}") from error
    if any(read_result(run) is None for run in runs):
        _check_weights(setting.base.MODEL.WEIGHTS)
        _read_data(setting.base)
    _check_output(setting.output)
    return runs


def _check_output(output: Path) -> None:
    try:
        probe_folder(output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written ({error}): choose another folder") from error


def _check_weights(weights: str) -> None:
    if weights and "://" not in weights and not Path(weights).is_file():
        raise ConfigError(
            f"MODEL.WEIGHTS {weights} does not exist, and every row starts from it: train or download it first"
        )


def _read_data(cfg: CfgNode) -> None:
    """Reads the annotations (and renders synthetic scenes), so that errors are reported once, not by each row."""
    load_training_set(cfg.DATASETS.TRAIN, cfg.INPUT.PERSON_MASKS, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    registered_records(cfg.DATASETS.TEST[0])


def _train(runs: Sequence[Run], setting: Setting, write: Callable[[bool], list[Path]], say: Say) -> bool:
    """Trains, and writes after each run (False) and at the end (True)."""
    gpus = visible_gpus() if setting.base.MODEL.DEVICE.startswith("cuda") else []
    runner = Runner(setting.script, share(setting.jobs, own_cores(), gpus), say, lambda: write(False))
    failed = runner.run(runs)
    for path in write(True):
        say(str(path))
    if failed:
        names = "; ".join(run.name for run in failed)
        say(f"{len(failed)} of {len(runs)} runs failed: {names}. The same command tries them again.")
    return not failed


def _table_rows(
    rows: Sequence[Row], runs: Sequence[Run], base: CfgNode, published: Mapping[str, Mapping[str, Published]]
) -> list[TableRow]:
    table = []
    for row in rows:
        own = [run for run in runs if run.row.name == row.name]
        results = {run.seed: result for run in own if (result := read_result(run)) is not None}
        by_seed = {seed: flat_metrics(result["figures"]) for seed, result in results.items()}
        changes = differing_keys(base, own[0].cfg)
        table.append(TableRow(row.name, row.title, by_seed, changes, published.get(row.name, {})))
    return table


def _dataset(cfg: CfgNode) -> str:
    return f"trained on {', '.join(cfg.DATASETS.TRAIN)}, evaluated on {cfg.DATASETS.TEST[0]}"


def _about(setting: Setting, runs: Sequence[Run]) -> list[str]:
    solver = setting.base.SOLVER
    length = _count(solver.MAX_ITER, "iteration") if solver.MAX_ITER > 0 else _count(solver.MAX_EPOCH, "epoch")
    results = [result for run in runs if (result := read_result(run)) is not None]
    seconds = [result["seconds"] for result in results if result["seconds"] is not None]
    took = f", {duration(sum(seconds) / len(seconds))} a run on average" if seconds else ""
    return [f"`{setting.command}`", "", f"{length}, {_count(solver.IMS_PER_BATCH, 'frame')} an iteration{took}."]


def _count(number: float, word: str) -> str:
    return f"{number:g} {word}{'' if number == 1 else 's'}"
