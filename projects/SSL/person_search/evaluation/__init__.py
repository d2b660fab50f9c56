"""Evaluation of person search: search problems, metrics, protocols, stored outputs.

May import `data`, `report` (the page) and the top-level modules, but no `modeling`, `labels` or `engine`. Imported by
`report`, `engine`, `search` and `reproduction`.
"""

from .evaluator import PersonSearchEvaluator
from .metrics import (
    DetectionResult,
    SearchOptions,
    SearchResult,
    evaluate_detection,
    evaluate_galleries,
    evaluate_search,
)
from .problem import SearchProblem
from .protocols import build_problem, given_boxes_by_image
from .rescoring import ContextMatching, Reranking
from .storage import load_problem, save_problem

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
