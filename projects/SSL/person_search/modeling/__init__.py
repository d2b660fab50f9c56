"""The model: meta-architecture, heads, exemplar branch, memory banks and losses. Importing it registers them."""

from .anchors import RoundedAnchorGenerator
from .bank_objective import BankObjective
from .context_guided import CGPSObjective
from .embedding import LinearEmbedding, NormAwareEmbedding, PooledFeatures
from .exemplar_branch import ExemplarBranch
from .losses import cluster_contrastive_loss, multi_label_loss, scale_invariant_loss
from .memory_bank import MemoryBank
from .meta_arch import SSLPersonSearch
from .objective import SSLObjective
from .one_head import OneHeadROIHeads, TrainingEmbeddings
from .online_matching import OIMObjective
from .pooling import DeformableRoIPooler
from .region_siamese import RSiamNetObjective
from .reid_objective import REID_OBJECTIVE_REGISTRY, ReIDObjective
from .roi_heads import PersonSearchROIHeads

__all__ = [
    "BankObjective",
    "CGPSObjective",
    "DeformableRoIPooler",
    "ExemplarBranch",
    "LinearEmbedding",
    "MemoryBank",
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
    "cluster_contrastive_loss",
    "multi_label_loss",
    "scale_invariant_loss",
]
