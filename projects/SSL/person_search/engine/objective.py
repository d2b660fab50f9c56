"""Which objective a config asks for, what goes with it, and the one gate through which identities reach training."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.training_set import TrainingSet
from ..errors import ConfigError, DatasetError
from ..modeling.reid_objective import objective_class


def check_objective(cfg: CfgNode) -> None:
    """Refuses an objective with keys that contradict it: above all identities where they must not be read.

    Raises:
        ConfigError: naming the key and what to do.
    """
    name, objective = cfg.MODEL.OBJECTIVE.NAME, objective_class(cfg)
    if objective.needs_identities and not cfg.INPUT.IDENTITIES:
        raise ConfigError(
            f"MODEL.OBJECTIVE.NAME {name} is supervised: allow it to read identities, INPUT.IDENTITIES True"
        )
    if cfg.INPUT.IDENTITIES and not objective.needs_identities:
        raise ConfigError(
            f"INPUT.IDENTITIES is True, but MODEL.OBJECTIVE.NAME {name} is weakly supervised and must not read "
            "identities: set it to False"
        )
    exemplar = cfg.SSL.EXEMPLAR
    if exemplar.ENABLED not in objective.exemplars:
        needs = "is made of" if objective.exemplars == (True,) else "makes nothing of"
        raise ConfigError(
            f"MODEL.OBJECTIVE.NAME {name} {needs} exemplars: set SSL.EXEMPLAR.ENABLED {not exemplar.ENABLED}"
        )
    if exemplar.ENABLED and cfg.MODEL.SECOND_HEAD.GLOBAL_POOLING != "max":
        raise ConfigError(
            f"MODEL.SECOND_HEAD.GLOBAL_POOLING is {cfg.MODEL.SECOND_HEAD.GLOBAL_POOLING!r}, but exemplars are pooled "
            "by their maximum: set it to 'max', or SSL.EXEMPLAR.ENABLED False"
        )


def training_identities(cfg: CfgNode, training_set: TrainingSet) -> Tensor | None:
    """Identities (N,) int64 of the bank rows, numbered from 0, -1 where unknown; None unless INPUT.IDENTITIES is set.

    Raises:
        DatasetError: they are to be read, and the training set knows none.
    """
    if not cfg.INPUT.IDENTITIES:
        return None
    identities = torch.from_numpy(training_set.identities)
    if not (identities >= 0).any():
        raise DatasetError(
            f"{', '.join(cfg.DATASETS.TRAIN)}: no person has an identity, so {cfg.MODEL.OBJECTIVE.NAME} has nothing "
            "to learn from: annotate person_id, or train a weakly supervised method"
        )
    return identities
