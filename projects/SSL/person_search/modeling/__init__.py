"""The model: meta-architecture, heads, exemplar branch, memory banks and losses. Importing it registers them."""

from .anchors import RoundedAnchorGenerator
from .embedding import NormAwareEmbedding, PooledFeatures
from .exemplar_branch import ExemplarBranch
from .losses import cluster_contrastive_loss, multi_label_loss, scale_invariant_loss
from .memory_bank import MemoryBank
from .meta_arch import SSLPersonSearch
from .objective import SSLObjective
from .pooling import DeformableRoIPooler
from .roi_heads import PersonSearchROIHeads, TrainingEmbeddings

__all__ = [
    "DeformableRoIPooler",
    "ExemplarBranch",
    "MemoryBank",
    "NormAwareEmbedding",
    "PersonSearchROIHeads",
    "PooledFeatures",
    "RoundedAnchorGenerator",
    "SSLObjective",
    "SSLPersonSearch",
    "TrainingEmbeddings",
    "cluster_contrastive_loss",
    "multi_label_loss",
    "scale_invariant_loss",
]
