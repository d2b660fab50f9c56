"""Evaluator of person search for Detectron2: collects the model's outputs, then searches."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.catalog import EVALUATOR_TYPE
from ..data.images import frame_reader
from ..data.records import SearchProtocol
from ..data.registration import check_registered, protocol_reader, registered_records
from ..errors import ConfigError, DatasetError, PersonSearchError
from ..values import check_value
from .analysis import describe_breakdown, describe_protocol, query_rows
from .controls import (
    BACKBONE,
    HISTOGRAM,
    RANDOM,
    TITLES,
    BoxFeatures,
    below_histogram,
    evaluate_controls,
    histogram_features,
    random_features,
)
from .features import image_output
from .metrics import (
    DetectionResult,
    SearchOptions,
    SearchResult,
    evaluate_detection,
    evaluate_galleries,
    finite_or_none,
)
from .problem import SearchProblem
from .protocols import (
    CUHK_SYSU_SIZES,
    ImageOutput,
    build_problem,
    check_frame_gap,
    given_boxes_by_image,
)
from .rescoring import ContextMatching, Reranking
from .storage import save_problem, write_json

logger = logging.getLogger(__name__)


class PersonSearchEvaluator(DatasetEvaluator):
    """Search and detection metrics of a test set, in percent.

    `evaluate` returns, in Detectron2's format, "search" with mAP, top1, top5 and top10 of the main gallery (PRW: all
    cameras; CUHK-SYSU: 100 frames, or the smallest; custom datasets: all frames but the query's own), further galleries
    as "search_cross_camera" and "search_gallery_<size>", and "detection" with AP and recall. With an output folder, it
    writes results.json (metrics, settings, counts), queries.json (the main gallery by query), breakdown.json (metrics
    by camera and height, curves) and report.html, which shows them all. A dataset without search, for lack of
    identities, only has "detection" and results.json.

    The model's inputs need "given_boxes" from `given_boxes`. All ranks must call `evaluate`; the first one gathers,
    evaluates and writes, the others return {}.

    Attributes:
        problem: collected arrays after `evaluate`, on the first rank; None before.
        results: `SearchResult` by gallery name after `evaluate`, on the first rank.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        records: Sequence[Mapping[str, Any]],
        protocol: SearchProtocol,
        output_dir: str | None = None,
        query_feature: str = "ground_truth",
        gallery: str = "detections",
        score_weighted: bool = True,
        score_threshold: float = 0.5,
        cross_camera: bool | None = None,
        min_frame_gap: int = 0,
        controls: bool = False,
        backbone_features: Callable[[SearchProblem], BoxFeatures] | None = None,
        cbgm: ContextMatching | None = None,
        reranking: Reranking | None = None,
        save: bool = False,
        report: bool = True,
    ) -> None:
        """For the options see `build_problem` and `SearchOptions`.

        `save` also writes the problem (problem.npz), `report` the page (report.html). `controls` also searches with
        random vectors, color histograms and, if given, `backbone_features`, for the metrics "control_<name>".

        Raises:
            DatasetError: the protocol has no queries and gives no reason, or a query in a frame that is not among the
                records.
            ConfigError: an option has an invalid value.
        """
        check_value("TEST.PERSON_SEARCH.QUERY_FEATURE", query_feature)
        check_value("TEST.PERSON_SEARCH.GALLERY", gallery)
        _check_measurable(dataset_name, protocol, gallery)
        self.given_boxes_by_image = given_boxes_by_image(records, protocol, "ground_truth")
        self.problem: SearchProblem | None = None
        self.results: dict[str, SearchResult] = {}
        self._dataset_name, self._records, self._protocol = dataset_name, records, protocol
        self._output_dir = None if output_dir is None else Path(output_dir)
        check_frame_gap(min_frame_gap, records, protocol)
        self._choices: dict[str, Any] = {
            "query_feature": query_feature,
            "gallery": gallery,
            "cross_camera": cross_camera,
            "min_frame_gap": min_frame_gap,
        }
        self._has_controls, self._backbone_features = controls, backbone_features
        self.controls: dict[str, dict[str, SearchResult]] = {}
        self._options = SearchOptions(score_threshold, score_weighted, cbgm, reranking)
        self._save, self._writes_report = save, report
        self._outputs: dict[str, ImageOutput] = {}

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_dir: str | None = None,
        backbone_features: Callable[[SearchProblem], BoxFeatures] | None = None,
    ) -> dict[str, Any]:
        """Constructor arguments from TEST.PERSON_SEARCH, for a registered dataset.

        Raises:
            ConfigError: a key has an invalid value.
            DatasetError: the dataset has no queries.
        """
        keys = cfg.TEST.PERSON_SEARCH
        records, protocol = _load(dataset_name)
        context_matching, reranking = _rescoring(keys)
        _check_cross_camera(keys, dataset_name, records, protocol)
        return {
            "dataset_name": dataset_name,
            "records": records,
            "protocol": protocol,
            "output_dir": output_dir,
            "query_feature": keys.QUERY_FEATURE,
            "gallery": keys.GALLERY,
            "cross_camera": True if keys.CROSS_CAMERA else None,
            "min_frame_gap": keys.MIN_FRAME_GAP,
            "controls": keys.CONTROLS,
            "backbone_features": backbone_features,
            "score_weighted": keys.SCORE_WEIGHTED,
            "score_threshold": keys.SCORE_THRESHOLD,
            "cbgm": context_matching,
            "reranking": reranking,
            "save": keys.SAVE_PROBLEM,
            "report": keys.REPORT,
        }

    @classmethod
    def given_boxes(cls, cfg: CfgNode, dataset_name: str) -> dict[str, np.ndarray]:
        """Boxes to give to the model with each frame of a registered dataset (see `given_boxes_by_image`).

        They are those of all protocols, whatever `cfg` selects: some more boxes cost little compared with the
        proposals, and the outputs then serve any later evaluation.

        Raises:
            ConfigError: the dataset is not registered, or TEST.PERSON_SEARCH.GALLERY is unknown.
            DatasetError: the dataset has no queries, or one in a frame that it lacks.
        """
        check_value("TEST.PERSON_SEARCH.GALLERY", cfg.TEST.PERSON_SEARCH.GALLERY)
        return given_boxes_by_image(*_load(dataset_name), "ground_truth")

    def reset(self) -> None:
        """Discards collected outputs."""
        self._outputs = {}
        self.problem, self.results, self.controls = None, {}, {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Collects the outputs of frames.

        Args:
            inputs: inputs with "image_id".
            outputs: outputs with "instances" (pred_boxes in pixels of the original frame, scores, embeddings (n, d))
                and "given_embeddings" (R, d), which may be missing if no boxes were given.

        Raises:
            TrainingError: a box, score or embedding is not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            self.collect({image["image_id"]: image_output(image["image_id"], output)})

    def collect(self, outputs: Mapping[str, ImageOutput]) -> None:
        """Collects outputs of frames as arrays by image_id: a model's, converted by `process`, or stored ones."""
        self._outputs |= outputs

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Metrics of all collected outputs; see the class.

        Raises:
            DatasetError: frames were not evaluated, or no query has a match in the main gallery.
            ConfigError: the options do not fit the protocol.
        """
        gathered = comm.gather(self._outputs)
        metrics, failure = OrderedDict(), None
        if comm.is_main_process():
            self._outputs = {name: output for part in gathered for name, output in part.items()}
            try:
                metrics = self._evaluate()
            except PersonSearchError as error:
                failure = error
        # A rank that continued alone would wait for the others until the collective times out.
        failures = [error for error in comm.all_gather(failure) if error is not None]
        if failures:
            raise failures[0]
        return metrics

    def _evaluate(self) -> OrderedDict[str, dict[str, float]]:
        threshold = self._options.score_threshold
        problem = build_problem(
            self._records, self._protocol, self._outputs, score_threshold=threshold, **self._choices
        )
        self.problem = problem
        if not problem.query_frame.size:
            return self._evaluate_detection_alone(problem)
        slow = self._options.context_matching is not None or self._options.reranking is not None
        self.results = evaluate_galleries(problem, self._options, progress=slow)
        detection = evaluate_detection(problem, threshold) if self._choices["gallery"] == "detections" else None
        main = problem.gallery_name()
        if not self.results[main].num_evaluated:
            raise DatasetError(
                f"{self._dataset_name}: none of the {len(problem.query_frame)} queries has a match in its gallery "
                f"({main}); a person must appear in at least two frames"
            )
        names = {name: self._result_names(name, main) for name in self.results}
        metrics: OrderedDict[str, dict[str, float]] = OrderedDict()
        left_out = self._missing_sizes()
        for name in sorted(self.results, key=lambda name: name != main):
            if self.results[name].num_evaluated:
                metrics.update((key, self.results[name].metrics(scale=100.0)) for key in names[name])
            else:
                left_out[name] = "no query has a match in this gallery"
        if detection is not None:
            metrics["detection"] = _detection_metrics(detection)
        of_controls, why_not = self._evaluate_controls(problem, names)
        metrics.update(of_controls)
        self._report(problem, metrics, names, left_out | why_not, detection)
        return metrics

    def _evaluate_detection_alone(self, problem: SearchProblem) -> OrderedDict[str, dict[str, float]]:
        detection = evaluate_detection(problem, self._options.score_threshold)
        metrics = OrderedDict(detection=_detection_metrics(detection))
        logger.info(
            "%s: search is not evaluated, since %s: metrics are those of detection only",
            self._dataset_name, self._protocol.no_search,
        )  # fmt: skip
        if self._output_dir is not None:
            for name in ("queries.json", "breakdown.json", "report.html"):  # of an earlier evaluation with search
                (self._output_dir / name).unlink(missing_ok=True)
            protocol = describe_protocol(self._protocol.kind, {}, self._choices, self._options)
            kept = {key: protocol[key] for key in ("dataset_kind", "searched")}
            self._write_results(problem, metrics, kept, {"search": self._protocol.no_search}, detection)
        return metrics

    def _evaluate_controls(
        self, problem: SearchProblem, names: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Metrics of the controls as "control_<name>", and the reasons why some have none."""
        makers: dict[str, Callable[[], BoxFeatures]] = {}
        if self._has_controls:
            makers[RANDOM] = partial(random_features, problem)
            makers[HISTOGRAM] = partial(histogram_features, problem, frame_reader(self._records))
        if self._backbone_features is not None:
            makers[BACKBONE] = partial(self._backbone_features, problem)
        # Without context matching and re-ranking, which would improve a control as they do the network.
        options = replace(self._options, context_matching=None, reranking=None)
        self.controls, left_out = evaluate_controls(problem, options, makers)
        figures = {
            key.replace("search", f"control_{control}", 1): results[gallery].metrics(scale=100.0)
            for control, results in self.controls.items()
            for gallery, keys in names.items()
            for key in keys
            if results[gallery].num_evaluated
        }
        return figures, {f"control: {TITLES[name]}": reason for name, reason in left_out.items()}

    def _result_names(self, gallery: str, main: str) -> list[str]:
        listed = [f"search_gallery_{gallery}"] if self._protocol.galleries else []
        if gallery == main:
            return ["search", *listed]
        return listed or [f"search_{gallery}"]

    def _missing_sizes(self) -> dict[str, str]:
        if self._protocol.kind != "cuhk_sysu":
            return {}
        missing = [size for size in CUHK_SYSU_SIZES if size not in self._protocol.galleries]
        return {size: f"TestG{size}.mat is not there" for size in missing}

    def _report(
        self,
        problem: SearchProblem,
        metrics: Mapping[str, Mapping[str, float]],
        names: Mapping[str, Sequence[str]],
        left_out: Mapping[str, str],
        detection: DetectionResult | None,
    ) -> None:
        result = self.results[problem.gallery_name()]
        protocol = describe_protocol(self._protocol.kind, names, self._choices, self._options)
        logger.info("%s: %s", self._dataset_name, "; ".join(f"{key}: {value}" for key, value in protocol.items()))
        if below := below_histogram(metrics):
            logger.warning("%s: mAP is below that of a color histogram: %s", self._dataset_name, "; ".join(below))
        for name, reason in left_out.items():
            logger.warning("%s: no metrics for gallery %s: %s", self._dataset_name, name, reason)
        if self._output_dir is None:
            return
        write_json(self._output_dir / "queries.json", query_rows(problem, result))
        breakdown = describe_breakdown(problem, self.results, self._options, detection is not None)
        write_json(self._output_dir / "breakdown.json", breakdown)
        self._write_results(problem, metrics, protocol, left_out, detection)
        if self._writes_report:
            from ..report import write_report  # circular: the report imports this package

            logger.info("%s: see %s", self._dataset_name, write_report(self._output_dir, self._records))

    def _write_results(
        self,
        problem: SearchProblem,
        metrics: Mapping[str, Mapping[str, float]],
        protocol: Mapping[str, Any],
        left_out: Mapping[str, str],
        detection: DetectionResult | None,
    ) -> None:
        """Writes results.json and, if requested, problem.npz."""
        assert self._output_dir is not None
        evaluated = self.results[problem.gallery_name()].num_evaluated if self.results else 0
        counts = {
            "frames": len(problem.frame_name),
            **({} if detection is None else {"detections": len(problem.det_frame)}),
            "annotated_boxes": len(problem.gt_frame),
            "queries": len(problem.query_frame),
            "queries_without_match": len(problem.query_frame) - evaluated,
            "queries_without_feature": int((~problem.query_feature.any(axis=1)).sum()),
        }
        if detection is not None:
            counts["detections_above_threshold"] = detection.num_detections
        content = {
            "dataset": self._dataset_name,
            "figures": {key: {k: finite_or_none(v) for k, v in row.items()} for key, row in metrics.items()},
            "unit": "percent",
            "protocol": dict(protocol),
            "left_out": dict(left_out),
            "controls": {name: TITLES[name] for name in self.controls},
            "counts": counts,
        }
        if self._save:
            save_problem(problem, self._output_dir / "problem.npz")
        write_json(self._output_dir / "results.json", content)


def _check_measurable(dataset_name: str, protocol: SearchProtocol, gallery: str) -> None:
    """Raises an error if nothing can be evaluated on a dataset."""
    if protocol.queries:
        return
    if not protocol.no_search:
        raise DatasetError(f"{dataset_name}: the search protocol has no queries, so there is nothing to search")
    if gallery == "ground_truth":
        raise ConfigError(
            f"TEST.PERSON_SEARCH.GALLERY is 'ground_truth', and search in {dataset_name} cannot be evaluated, since "
            f"{protocol.no_search}: set it to 'detections', whose AP and recall can"
        )


def _detection_metrics(detection: DetectionResult) -> dict[str, float]:
    metrics = {"AP": 100 * detection.AP, "recall": 100 * detection.recall}
    if not math.isnan(detection.recall_labelled):
        metrics["recall_labelled"] = 100 * detection.recall_labelled
    return metrics


def _rescoring(keys: CfgNode) -> tuple[ContextMatching | None, Reranking | None]:
    """Context matching and re-ranking from TEST.PERSON_SEARCH; errors name its keys."""
    cbgm, reranking, section = keys.CBGM, keys.RERANKING, "TEST.PERSON_SEARCH"
    if cbgm.ENABLED and reranking.ENABLED:
        raise ConfigError(
            f"{section}.CBGM.ENABLED and {section}.RERANKING.ENABLED cannot both be on, since each replaces the "
            "similarities; set one of them to False"
        )
    return (
        ContextMatching(cbgm.K1, cbgm.K2, cbgm.QUERY_NMS) if cbgm.ENABLED else None,
        Reranking(reranking.K1, reranking.K2, reranking.LAMBDA) if reranking.ENABLED else None,
    )


def _check_cross_camera(
    keys: CfgNode, dataset_name: str, records: Sequence[Mapping[str, Any]], protocol: SearchProtocol
) -> None:
    """Raises an error, before the network runs, if a search across cameras is impossible."""
    if not keys.CROSS_CAMERA:
        return
    key = "TEST.PERSON_SEARCH.CROSS_CAMERA is True"
    if protocol.galleries:
        raise ConfigError(f"{key}, but {dataset_name} lists the frames to search for each query: set it to False")
    if any(record.get("camera_id") is None for record in records):
        raise ConfigError(
            f"{key}, but {dataset_name} has frames without camera_id: annotate it, or set the key to False"
        )


def _load(dataset_name: str) -> tuple[list[dict[str, Any]], SearchProtocol]:
    check_registered(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in (None, EVALUATOR_TYPE, "coco"):
        raise DatasetError(
            f"{dataset_name} has no queries: its evaluator_type is {kind!r}, and DATASETS.TEST needs a dataset with a "
            f"search protocol ({EVALUATOR_TYPE!r})"
        )
    load_protocol = protocol_reader(dataset_name)
    if load_protocol is None:
        raise DatasetError(f"{dataset_name} has no queries: DATASETS.TEST needs a dataset with a search protocol")
    return registered_records(dataset_name), load_protocol()
