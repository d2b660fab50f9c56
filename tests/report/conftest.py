"""Search problems and brute-force metrics: those of the tests of the evaluation."""

from ..evaluation.conftest import golden_problem, scattered, slow  # noqa: F401  (fixtures)
