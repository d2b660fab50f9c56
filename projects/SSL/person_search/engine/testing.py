"""Evaluation of a network on a test set, with stored features where available, and of the backbone as a control."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tabulate import tabulate
from torch import nn

from ..data.loader import build_test_loader
from ..data.mapper import PersonSearchMapper
from ..data.registration import registered_records
from ..errors import ConfigError, ExpectationError
from ..evaluation import PersonSearchEvaluator
from ..evaluation.controls import BoxFeatures
from ..evaluation.features import FeatureStore, extract, frame_keys, from_main, network_key
from ..evaluation.problem import SearchProblem
from ..evaluation.protocols import ImageOutput
from ..modeling import SSLPersonSearch
from ..progress import Progress
from ..weights import PersonSearchCheckpointer

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def evaluate_dataset(
    model: nn.Module,
    dataset_name: str,
    evaluator: PersonSearchEvaluator,
    load: Callable[[list[Record]], Iterable[list[dict[str, Any]]]],
    store: FeatureStore | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of a network on a test set. To be called on all processes, which share the frames.

    Args:
        model: see `SSLPersonSearch`.
        dataset_name: registered test set.
        evaluator: evaluator of that set.
        load: returns this process's batches of given records.
        store: feature store to read from and write to; None for none.

    Returns:
        metrics by task on the main process, {} on others.
    """
    records = registered_records(dataset_name)
    evaluator.reset()
    stored: dict[str, ImageOutput] = {}

    def missing_frames() -> dict[str, str]:
        if store is None:
            return {record["image_id"]: "" for record in records}
        keys = frame_keys(records, evaluator.given_boxes_by_image)
        stored.update(store.load(keys))
        if stored:
            logger.info("%s: features of %d of %d frames from %s", dataset_name, len(stored), len(keys), store.folder)
        return {name: key for name, key in keys.items() if name not in stored}

    missing = from_main(missing_frames)
    evaluator.collect(stored)
    if missing:
        left = [record for record in records if record["image_id"] in missing]
        with contextlib.ExitStack() as stack:
            takers = [evaluator.collect]
            if store is not None:
                takers.append(stack.enter_context(store.writer(missing)).add)

            def take(outputs: dict[str, ImageOutput]) -> None:
                for taker in takers:
                    taker(outputs)

            extract(model, load(left), take, dataset_name, len(left))
    return evaluator.evaluate()


def table_of_metrics(dataset_name: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of a test set as text tables, one for search with its controls and one for detection."""
    tables = [f"{dataset_name}, in percent:"]
    for first in ("mAP", "AP"):
        rows = {task.replace("_", " "): metrics for task, metrics in results.items() if next(iter(metrics)) == first}
        if rows:
            names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
            cells = [[task, *(metrics.get(name) for name in names)] for task, metrics in rows.items()]
            tables.append(tabulate(cells, ["", *(n.replace("_", " ") for n in names)], "plain", floatfmt=".1f"))
    return "\n".join(tables)


def feature_store(cfg: CfgNode, model: nn.Module, dataset_name: str) -> FeatureStore | None:
    """Feature store of a network and test set, as set by TEST.PERSON_SEARCH.FEATURE_STORE; None if disabled."""
    keys = cfg.TEST.PERSON_SEARCH.FEATURE_STORE
    if not keys.ENABLED:
        return None
    folder = Path(keys.FOLDER or Path(cfg.OUTPUT_DIR) / "inference" / "features")
    return FeatureStore.of(folder, dataset_name, network_key(model, cfg))


def check_expected_results(cfg: CfgNode) -> None:
    """Checks TEST.EXPECTED_RESULTS, before the evaluation.

    Raises:
        ConfigError: an entry is malformed, or there is not exactly one test set.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    for entry in expected:
        well_formed = isinstance(entry, list | tuple) and len(entry) == 4 and all(isinstance(x, str) for x in entry[:2])
        if not well_formed or not all(type(x) in (int, float) and math.isfinite(x) for x in entry[2:]):
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS holds {entry!r}, expected [task, metric, value, tolerance] such as "
                "['search', 'mAP', 40.0, 0.5]"
            )
    if len(expected) and len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS is compared with one test set, and DATASETS.TEST names {len(cfg.DATASETS.TEST)}"
        )


def verify_expected_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> None:
    """Compares the metrics of the test set with TEST.EXPECTED_RESULTS.

    Args:
        cfg: config with entries [task, metric, value, tolerance].
        results: metrics by task.

    Raises:
        ExpectationError: a metric is missing or differs by more than its tolerance.
    """
    wrong = []
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        found = results.get(task, {}).get(metric)
        if found is None:
            known = ", ".join(f"{t}/{m}" for t, metrics in results.items() for m in metrics)
            wrong.append(f"{task}/{metric} does not exist (there are {known})")
        elif not abs(found - value) <= tolerance:
            wrong.append(f"{task}/{metric} is {found:.4f}, expected {value:g} within {tolerance:g}")
    if wrong:
        raise ExpectationError(f"TEST.EXPECTED_RESULTS: {'; '.join(wrong)}")
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("All %d metrics of TEST.EXPECTED_RESULTS are as expected", len(cfg.TEST.EXPECTED_RESULTS))


def backbone_features(cfg: CfgNode, dataset_name: str, problem: SearchProblem) -> BoxFeatures:
    """Features of a problem's boxes from the backbone with TEST.PERSON_SEARCH.CONTROL_WEIGHTS.

    Features are the re-id head's pooled res4 and res5 vectors, each scaled to unit length and concatenated: the input
    of the embedding, untouched by re-id training.

    Args:
        cfg: config with the project's keys, which describes the network.
        dataset_name: registered dataset of the problem.
        problem: search problem, with boxes in pixels of the original frames.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """
    model: SSLPersonSearch = build_model(cfg).eval()
    PersonSearchCheckpointer(model).load(cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS)
    numbers = {name: number for number, name in enumerate(problem.frame_name)}
    rows: list[tuple[np.ndarray, np.ndarray]] = [
        (np.flatnonzero(problem.det_frame == number), np.flatnonzero(problem.query_frame == number))
        for number in range(len(numbers))
    ]
    boxes = {
        name: np.concatenate([problem.det_box[rows[number][0]], problem.query_box[rows[number][1]]]).astype(np.float32)
        for name, number in numbers.items()
    }
    loader = build_test_loader(
        registered_records(dataset_name),
        PersonSearchMapper(cfg, False, given_boxes=boxes),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT,
    )
    detections = queries = np.zeros((0, 0), np.float32)
    progress = Progress("Backbone as it starts", len(numbers), "frames")
    for batch in loader:
        progress.loaded()
        for inputs, vectors in zip(batch, _pooled(model, batch), strict=True):
            if not queries.size:
                detections = np.zeros((len(problem.det_frame), vectors.shape[1]), np.float32)
                queries = np.zeros((len(problem.query_frame), vectors.shape[1]), np.float32)
            found, asked = rows[numbers[inputs["image_id"]]]
            detections[found], queries[asked] = vectors[: len(found)], vectors[len(found) :]
        progress.finished(len(batch))
    return BoxFeatures(detections, queries)


@torch.inference_mode()
def _pooled(model: SSLPersonSearch, batch: list[dict[str, Any]]) -> list[np.ndarray]:
    """Features (n, C4 + C5) of the given boxes of each image, of unit length."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    boxes = [Boxes(inputs["given_boxes"].to(model.device)) for inputs in batch]
    pooled = model.roi_heads.pool_boxes(features, boxes)
    joined = torch.cat([F.normalize(part.float(), dim=1) for part in pooled], dim=1)
    return [part.cpu().numpy() for part in F.normalize(joined, dim=1).split([len(b) for b in boxes])]
