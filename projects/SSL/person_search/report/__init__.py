"""Report of an evaluation, as a self-contained HTML file without scripts, and pictures of a run.

May import `data`, `evaluation` and the top-level modules. Imported by `evaluation` (its evaluator), `engine`,
`reproduction` and the programs.
"""

from .page import MAX_STRIPS, NUM_HARDEST, NUM_SPREAD, write_report

__all__ = ["MAX_STRIPS", "NUM_HARDEST", "NUM_SPREAD", "write_report"]
