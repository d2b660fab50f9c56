"""The report of an evaluation, one HTML file that needs no script and nothing beside it, and the pictures of a run.

May import `data`, `evaluation` and the modules beside the folders. `evaluation` (its evaluator), `engine`,
`reproduction` and the programs import it.
"""

from .page import MAX_STRIPS, NUM_HARDEST, NUM_SPREAD, write_report

__all__ = ["MAX_STRIPS", "NUM_HARDEST", "NUM_SPREAD", "write_report"]
