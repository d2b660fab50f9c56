"""Training: trainer, hooks, schedules and config checks.

May import all folders but `search`, `synthetic` and `reproduction`. Imported by `reproduction` and the programs.
"""

from ..weights import PersonSearchCheckpointer
from .solver import iterations_per_epoch, resolve_schedule
from .trainer import PersonSearchTrainer

__all__ = ["PersonSearchCheckpointer", "PersonSearchTrainer", "iterations_per_epoch", "resolve_schedule"]
