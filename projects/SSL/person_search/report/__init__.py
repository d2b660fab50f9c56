"""The report of an evaluation: one HTML file that needs no script and nothing beside it."""

from .page import MAX_STRIPS, NUM_HARDEST, NUM_SPREAD, write_report

__all__ = ["MAX_STRIPS", "NUM_HARDEST", "NUM_SPREAD", "write_report"]
