"""Training: the trainer, its hooks and schedules, and the refusal of configs that cannot work.

May import all folders but `search`, `synthetic` and `reproduction`. `reproduction` and the programs import it.
"""

from ..weights import PersonSearchCheckpointer
from .solver import iterations_per_epoch, resolve_schedule
from .trainer import PersonSearchTrainer

__all__ = ["PersonSearchCheckpointer", "PersonSearchTrainer", "iterations_per_epoch", "resolve_schedule"]
