"""Model: meta-architecture, heads, exemplars, backbones, losses and re-id objectives.

May import `data`, `labels` and the top-level modules. Imported by `weights`, `engine`, `search` and `reproduction`.
Importing it registers its parts with Detectron2.
"""

from .embedding import FusedLinearEmbedding, LinearEmbedding, NormAwareEmbedding, PooledFeatures
from .exemplars import ExemplarBranch
from .heads import OneHeadROIHeads, PersonSearchROIHeads, TrainingEmbeddings
from .layers import DeformableRoIPooler, RoundedAnchorGenerator
from .losses import cluster_contrastive_loss, multi_label_loss, scale_invariant_loss
from .meta_arch import SSLPersonSearch
from .objectives.base import REID_OBJECTIVE_REGISTRY, BankObjective, MemoryBank, MultiLabelObjective, ReIDObjective
from .objectives.cgps import CGPSObjective
from .objectives.oim import OIMObjective
from .objectives.rsiamnet import RSiamNetObjective
from .objectives.ssl_objective import SSLObjective
from .timm_backbone import build_timm_backbone

__all__ = [
    "BankObjective",
    "CGPSObjective",
    "DeformableRoIPooler",
    "ExemplarBranch",
    "FusedLinearEmbedding",
    "LinearEmbedding",
    "MemoryBank",
    "MultiLabelObjective",
    "NormAwareEmbedding",
    "OIMObjective",
    "OneHeadROIHeads",
    "PersonSearchROIHeads",
    "PooledFeatures",
    "REID_OBJECTIVE_REGISTRY",
    "RSiamNetObjective",
    "ReIDObjective",
    "RoundedAnchorGenerator",
    "SSLObjective",
    "SSLPersonSearch",
    "TrainingEmbeddings",
    "build_timm_backbone",
    "cluster_contrastive_loss",
    "multi_label_loss",
    "scale_invariant_loss",
]
