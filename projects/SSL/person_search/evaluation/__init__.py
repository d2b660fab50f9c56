"""Evaluation of person search. The figures are plain NumPy: importing them loads neither PyTorch nor Detectron2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .metrics import (
    DetectionResult,
    SearchOptions,
    SearchResult,
    evaluate_detection,
    evaluate_galleries,
    evaluate_search,
)
from .problem import SearchProblem
from .rescoring import ContextMatching, Reranking
from .storage import load_problem, save_problem

if TYPE_CHECKING:
    from .evaluator import PersonSearchEvaluator
    from .protocols import build_problem, given_boxes_by_image

__all__ = [
    "ContextMatching",
    "DetectionResult",
    "PersonSearchEvaluator",
    "Reranking",
    "SearchOptions",
    "SearchProblem",
    "SearchResult",
    "build_problem",
    "evaluate_detection",
    "evaluate_galleries",
    "evaluate_search",
    "given_boxes_by_image",
    "load_problem",
    "save_problem",
]

# Loaded when they are asked for, since they need Detectron2 or the datasets.
_LAZY = {"PersonSearchEvaluator": "evaluator", "build_problem": "protocols", "given_boxes_by_image": "protocols"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
