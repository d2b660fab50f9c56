"""Configuration keys of the project, on top of Detectron2's defaults."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from .config_files import RENAMED_KEYS, get_config_file, merge_file_and_options, with_current_names

__all__ = [
    "RENAMED_KEYS",
    "add_ssl_config",
    "get_config",
    "get_config_file",
    "merge_file_and_options",
    "with_current_names",
]


def get_config(name: str = "", options: Sequence[str] = ()) -> CfgNode:
    """Config of this project, optionally with a config file and options merged in.

    Args:
        name: config of the package, such as "prw" or "ablations/dml", or path of a YAML file; "" for the defaults.
        options: KEY VALUE KEY VALUE ..., as on a command line.

    Raises:
        ConfigError: the file or a key does not exist, or a value does not fit.
    """
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, name, options)
    return cfg


def add_ssl_config(cfg: CfgNode) -> None:
    """Adds all keys of this project to `cfg`, in place. "Paper" in comments means arXiv 2302.12986v1.

    Args:
        cfg: config made by `detectron2.config.get_cfg()`.
    """
    _add_data_keys(cfg)
    _add_detector_keys(cfg)
    _add_exemplar_keys(cfg)
    _add_memory_keys(cfg)
    _add_clustering_keys(cfg)
    _add_teacher_keys(cfg)
    _add_threshold_keys(cfg)
    _add_loss_keys(cfg)
    _add_method_keys(cfg)
    _add_schedule_keys(cfg)
    _add_evaluation_keys(cfg)
    # Detectron2's own merge methods name the new key in their error; `merge_file_and_options` accepts the old one.
    for old, new in RENAMED_KEYS.items():
        cfg.register_renamed_key(old, new)


def _add_data_keys(cfg: CfgNode) -> None:
    # Custom datasets: a list of mappings, see datasets/README.md.
    cfg.DATASETS.CUSTOM = []
    # Torchvision's ImageNet weights expect RGB.
    cfg.INPUT.FORMAT = "RGB"
    # Whether training may read identities: required by supervised methods, forbidden for all others.
    cfg.INPUT.IDENTITIES = False
    # JSON files of foreground masks, one per dataset of DATASETS.TRAIN; [] for $DETECTRON2_DATASETS/masks/<name>.json.
    cfg.INPUT.PERSON_MASKS = []
    # Resizing of images: "pillow" (Detectron2's way, with anti-aliasing) or "torchvision" (bilinear interpolation of
    # floats without anti-aliasing, sizes rounded down, as SeqNet was trained and evaluated).
    cfg.INPUT.RESIZE = "pillow"
    # Multiple that heights and widths of a batch are padded to (SeqNet: 32); 0 for the backbone's own, which for a
    # ResNet is the size of the largest image.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # Grouping by aspect ratio makes batches depend on earlier ones, so runs could not be resumed exactly.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # Seconds to wait for a batch of the worker processes before the run fails with possible causes; 0 to wait forever.
    cfg.DATALOADER.TIMEOUT = 300.0


def _add_detector_keys(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "SSLPersonSearch"
    # "PersonSearchROIHeads": SeqNet's two heads in sequence; "OneHeadROIHeads": the re-id head alone on RPN proposals.
    cfg.MODEL.ROI_HEADS.NAME = "PersonSearchROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    # Minimum side of a proposal in pixels: Detectron2's key and default, but also fractional (SeqNet: 0.001).
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0.0

    # Network for MODEL.BACKBONE.NAME "build_timm_backbone": name of a timm network with stages of strides 16 and 32.
    # MODEL.WEIGHTS are its initial weights (docs/weights.md).
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite2"
    # Stride of the trunk: 16, or 8 for small persons, with the last stage dilated instead of strided. 8 takes more than
    # twice the time.
    cfg.MODEL.TIMM.STRIDE = 16
    # Frozen batch normalization, with the statistics and scales of the weights, as MODEL.RESNETS.NORM "FrozenBN".
    cfg.MODEL.TIMM.FROZEN_NORM = True

    # Minimum objectness, in [0, 1], of proposals at test time; 0 keeps all (SeqNet).
    cfg.MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST = 0.0

    # Box head (Faster R-CNN), which refines the proposals of the re-id head (SeqNet).
    cfg.MODEL.BOX_HEAD = CfgNode()
    # Weight of the smooth-L1 regression loss (SeqNet; every other detection weight is 1).
    cfg.MODEL.BOX_HEAD.BOX_LOSS_WEIGHT = 10.0
    # Score and NMS thresholds of the boxes that reach the re-id head at test time (SeqNet).
    cfg.MODEL.BOX_HEAD.SCORE_THRESH_TEST = 0.5
    cfg.MODEL.BOX_HEAD.NMS_THRESH_TEST = 0.4

    # Re-id head: box regression and embedding. Its NMS threshold is MODEL.ROI_HEADS.NMS_THRESH_TEST.
    cfg.MODEL.REID_HEAD = CfgNode()
    cfg.MODEL.REID_HEAD.BOX_LOSS_WEIGHT = 1.0
    cfg.MODEL.REID_HEAD.CLS_LOSS_WEIGHT = 1.0
    # Whether the final score of a detection is the box head's (SeqNet's FCS); False, or without a box head: the re-id
    # head's.
    cfg.MODEL.REID_HEAD.BOX_HEAD_SCORE = True
    # "norm_aware" (NAE): from res4 and res5, with the norm as person score. With a separate classifier: "linear" (OIM),
    # from res5; "fused_linear" (CGPS), from res4 and res5; "bn_neck", both normalized without a projection, which suits
    # pretrained backbones and short trainings (EMBEDDING_DIM must then equal the number of channels).
    cfg.MODEL.REID_HEAD.EMBEDDING = "norm_aware"
    # Dimension of the embedding; a norm-aware embedding takes one half from res4 and one from res5.
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 256
    # Pooling of RoI features into vectors: "max" (NAE, SeqNet, CGPS) or "average" (OIM).
    cfg.MODEL.REID_HEAD.GLOBAL_POOLING = "max"
    # Number of horizontal stripes to pool separately, which keeps the vertical order; 1 for global pooling (paper).
    cfg.MODEL.REID_HEAD.STRIPES = 1
    # Batch normalization after the box regressor (SeqNet's BN neck).
    cfg.MODEL.REID_HEAD.BN_NECK = True

    # RoI pooling: "align" or "deformable" (ICCV 2023 text of the paper).
    cfg.MODEL.ROI_BOX_HEAD.POOLING = "align"

    # Re-id objective: SSLObjective, or a method to compare with (docs/methods.md).
    cfg.MODEL.OBJECTIVE = CfgNode()
    cfg.MODEL.OBJECTIVE.NAME = "SSLObjective"


def _add_exemplar_keys(cfg: CfgNode) -> None:
    cfg.SSL = CfgNode()
    # Multi-scale exemplar branch (paper, section 3.2), used in training only.
    cfg.SSL.EXEMPLAR = CfgNode()
    cfg.SSL.EXEMPLAR.ENABLED = True
    # Fixed scales of Eq. 1, (height, width) in pixels; () for the original scale alone.
    cfg.SSL.EXEMPLAR.SCALES = ((112, 48), (224, 96), (448, 192))
    # Whether to include the crop at its own size in the resized scene (scale "o").
    cfg.SSL.EXEMPLAR.ORIGINAL = True
    # Whether to multiply crops by the person's foreground mask (Eq. 1). Without masks, crops keep their background.
    cfg.SSL.EXEMPLAR.MASK_BACKGROUND = True
    # Color of masked background: "black", since Eq. 1 multiplies pixels, or the "mean" color (0 after normalization).
    cfg.SSL.EXEMPLAR.BACKGROUND = "black"
    # Whether the exemplar backbone is the main branch's (the paper does not say). Sharing halves memory and lets the
    # scale-invariant loss act on the features used at test time. False: a separate copy.
    cfg.SSL.EXEMPLAR.SHARED_BACKBONE = True
    # Not in the paper: probability of erasing a random rectangle of an exemplar with the mean color, in training.
    cfg.SSL.EXEMPLAR.RANDOM_ERASING = 0.0


def _add_memory_keys(cfg: CfgNode) -> None:
    # Memory banks (Eq. 5 and 6).
    cfg.SSL.MEMORY = CfgNode()
    # Weight of the NEW feature in the update of a row (Eq. 5).
    cfg.SSL.MEMORY.LAMBDA = 0.8
    # Whether to renormalize rows after an update (the paper does not say); all similarities assume unit length.
    cfg.SSL.MEMORY.RENORMALIZE = True
    # Features to predict pseudo labels from: "mean" of both banks (Eq. 6) or "instance", the main branch's bank.
    cfg.SSL.MEMORY.LABEL_SOURCE = "mean"
    # Number of frames, evenly spaced over the training set, to calibrate the statistics of the embedding's batch
    # normalization with before the banks are filled. An untrained embedding has placeholder statistics, with which all
    # persons look alike. 0: no calibration.
    cfg.SSL.MEMORY.CALIBRATION_FRAMES = 50


def _add_clustering_keys(cfg: CfgNode) -> None:
    # Cluster labels (self-paced, as in CGPS and SpCL).
    cfg.SSL.CLUSTERING = CfgNode()
    # Epochs between clusterings.
    cfg.SSL.CLUSTERING.PERIOD = 1
    # Features to cluster: the "bank" rows, combined as in LABEL_SOURCE (paper, Eq. 6), or "extract", features of all
    # boxes from the current network (as in SpCL's successors). Banks are written by Eq. 5 in both cases.
    cfg.SSL.CLUSTERING.FEATURES = "bank"
    # Selected an approximate neighbor search, which was slower than the exact one below 100,000 boxes.
    cfg.register_deprecated_key("SSL.CLUSTERING.SEARCH")
    # Whether to shift every camera's mean feature to the overall mean before clustering. The paper uses no cameras.
    cfg.SSL.CLUSTERING.CAMERA_AWARE = False
    # Number of neighbors of the k-reciprocal encoding (K1) and of its local query expansion (K2).
    cfg.SSL.CLUSTERING.K1 = 30
    cfg.SSL.CLUSTERING.K2 = 6
    # Clustering of the distances: "dbscan" (paper), or "hdbscan", which may also split clusters within a radius. Both
    # use EPS and MIN_SAMPLES.
    cfg.SSL.CLUSTERING.ALGORITHM = "dbscan"
    # Radii: the middle one gives the clusters, the others their reliability. A single radius gives no reliability.
    cfg.SSL.CLUSTERING.EPS = (0.68, 0.70, 0.72)
    # Not in the paper: quantile, such as 0.005, of the distances between persons of one image. It becomes the middle
    # radius if it is below that of EPS; the others keep their differences from it. Persons of one image are certainly
    # different, so the quantile shows without identities where different persons get close, whereas the meaning of an
    # absolute distance changes with the network and with K1. None: EPS as given.
    cfg.SSL.CLUSTERING.EPS_QUANTILE = None
    cfg.SSL.CLUSTERING.MIN_SAMPLES = 4
    # Whether a cluster keeps only one of its members in an image, the one nearest to its centre, since persons of one
    # image differ (CGPS, whose clustering the paper uses).
    cfg.SSL.CLUSTERING.SAME_IMAGE_RULE = True
    # Not in the paper: whether to keep only the distances of pairs that match one to one between two images, each being
    # the other's nearest there, before the clustering. Unmatched persons are matched a second time.
    cfg.SSL.CLUSTERING.ONE_TO_ONE = False
    # Not in the paper: whether a person keeps its cluster only if it agrees with the last epoch's, that is, if the IoU
    # of both clusters is the largest among the members and at least 0.5.
    cfg.SSL.CLUSTERING.CONSENSUS = False
    # Not in the paper: whether boxes of one tracklet (`tracklet_id` of an annotation, from a tracker that knows no
    # identities) share a cluster, the one that most of them are in, or else one of their own.
    cfg.SSL.CLUSTERING.TRACKLETS = False
    # Quantile of the clusters' independence scores, frozen as the threshold at the first clustering.
    cfg.SSL.CLUSTERING.INDEPENDENCE_QUANTILE = 0.9


def _add_teacher_keys(cfg: CfgNode) -> None:
    # Not in the paper: mean teacher, the exponential moving average of the network, which fills the banks before each
    # clustering and is evaluated. MOMENTUM is the weight of its OLD value in each iteration, so it averages over some
    # 1 / (1 - MOMENTUM) iterations.
    cfg.SSL.TEACHER = CfgNode()
    cfg.SSL.TEACHER.ENABLED = False
    cfg.SSL.TEACHER.MOMENTUM = 0.999


def _add_threshold_keys(cfg: CfgNode) -> None:
    # Dynamic multi-label threshold t(e) = INITIAL + ALPHA * exp(BETA * e) (Eq. 9); ALPHA 0 keeps it fixed.
    cfg.SSL.THRESHOLD = CfgNode()
    # "none": t(e) is a similarity (paper). "same_image": t(e) is a quantile of the similarities between persons of one
    # image, who are certainly different, and the threshold is the similarity at that quantile. Absolute similarities
    # change their meaning with the network; a quantile of known negatives does not.
    cfg.SSL.THRESHOLD.CALIBRATION = "none"
    cfg.SSL.THRESHOLD.INITIAL = 0.6
    cfg.SSL.THRESHOLD.ALPHA = 0.1
    cfg.SSL.THRESHOLD.BETA = -0.1


def _add_loss_keys(cfg: CfgNode) -> None:
    # Weights of Eq. 13 (all 1 in the paper); a loss of weight 0 is not computed.
    cfg.SSL.SCALE_LOSS = CfgNode()
    cfg.SSL.SCALE_LOSS.WEIGHT = 1.0
    # m and gamma of Eq. 2.
    cfg.SSL.SCALE_LOSS.MARGIN = 0.3
    cfg.SSL.SCALE_LOSS.GAMMA = 0.05

    cfg.SSL.MULTI_LABEL_LOSS = CfgNode()
    cfg.SSL.MULTI_LABEL_LOSS.WEIGHT = 1.0
    # delta of Eq. 11. Not given in the arXiv text; 5 is the value of MMCL, whose loss this is, and of the ICCV text.
    cfg.SSL.MULTI_LABEL_LOSS.DELTA = 5.0
    # Fraction of the negatives to use, hardest first: 1 is Eq. 11, 0.01 is MMCL's hard-negative mining.
    cfg.SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO = 1.0
    # "sum" over the persons of the batch (Eq. 11), whose weight against the other losses, which are means, grows with
    # the batch size; or "mean" (MMCL's code), which does not grow, but is smaller by the number of persons.
    cfg.SSL.MULTI_LABEL_LOSS.REDUCTION = "sum"

    # Not in the paper: pushes RoIs of different persons of one image apart. Similarities above MARGIN are penalised,
    # averaged with the softmax of their excess as weights.
    cfg.SSL.IN_SCENE_LOSS = CfgNode()
    cfg.SSL.IN_SCENE_LOSS.WEIGHT = 0.0
    cfg.SSL.IN_SCENE_LOSS.MARGIN = 0.7

    # L_cluster (CGPS's hybrid contrastive loss).
    cfg.SSL.CLUSTER_LOSS = CfgNode()
    cfg.SSL.CLUSTER_LOSS.WEIGHT = 1.0
    cfg.SSL.CLUSTER_LOSS.TEMPERATURE = 0.05
    # Share of the negatives' softmax mass to be covered by the hardest clusters, which are kept.
    cfg.SSL.CLUSTER_LOSS.HARD_NEGATIVE_MASS = 0.6
    # Constant added to probabilities before the logarithm, and to the softmax's denominator. It makes gradients vanish
    # for features far from their cluster. 0 for none; CGPS's code uses 1e-6.
    cfg.SSL.CLUSTER_LOSS.EPSILON = 0.0


def _add_method_keys(cfg: CfgNode) -> None:
    # Online instance matching (OIMObjective), which also trains NAE and SeqNet.
    cfg.OIM = CfgNode()
    cfg.OIM.WEIGHT = 1.0
    # Slots of the circular queue of unlabelled persons: 500 for PRW, 5000 for CUHK-SYSU (SeqNet). The lookup table has
    # a row per identity of the training set.
    cfg.OIM.QUEUE_SIZE = 500
    # Weight of the OLD row in a table update.
    cfg.OIM.MOMENTUM = 0.5
    # Divisor of the similarities: 1/30 in NAE and SeqNet, 1/10 in the first implementation of OIM.
    cfg.OIM.TEMPERATURE = 1.0 / 30.0

    # CGPSObjective, in addition to SSL.MEMORY, SSL.CLUSTERING and SSL.CLUSTER_LOSS. Values are those of its code.
    cfg.CGPS = CfgNode()
    # Weight of the detection context loss, margin of its hinges, and weight of its background term.
    cfg.CGPS.CONTEXT_WEIGHT = 1.0
    cfg.CGPS.MARGIN = 0.3
    cfg.CGPS.BACKGROUND_WEIGHT = 0.25

    # RSiamNetObjective, in addition to the same keys; its crops are those of SSL.EXEMPLAR. Its code is not public: the
    # weights of 1 (as for all other losses) and the temperature of SSL.CLUSTER_LOSS are choices of this project.
    cfg.RSIAMNET = CfgNode()
    # Weight of the consistency between a person's region and its crop.
    cfg.RSIAMNET.REGION_WEIGHT = 1.0
    # Weight of the consistency between similarities in the scenes and among the crops, and divisor of the similarities.
    cfg.RSIAMNET.SIMILARITY_WEIGHT = 1.0
    cfg.RSIAMNET.SIMILARITY_TEMPERATURE = 0.05


def _add_schedule_keys(cfg: CfgNode) -> None:
    # Length and learning-rate steps in epochs (paper, section 4.2), converted to iterations by the sizes of the
    # dataset and the batch. SOLVER.MAX_ITER and SOLVER.STEPS take precedence if MAX_ITER is positive.
    cfg.SOLVER.MAX_EPOCH = 26
    cfg.SOLVER.STEP_EPOCHS = (16, 22)
    cfg.SOLVER.MAX_ITER = 0
    cfg.SOLVER.STEPS = ()
    # Periods of checkpoints and evaluations in epochs; 0 for SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 1
    cfg.TEST.EVAL_EPOCHS = 0
    # Number of checkpoints to keep besides the final one.
    cfg.SOLVER.CHECKPOINTS_KEPT = 2
    # Iterations between lines of metrics.
    cfg.SOLVER.LOG_PERIOD = 20
    # "SGD" (paper) or "AdamW", which converges sooner without pretrained weights.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Clip the total norm of all gradients. Detectron2's own types clip each parameter separately.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"


def _add_evaluation_keys(cfg: CfgNode) -> None:
    # Whether to evaluate the network before training as well, for comparison.
    cfg.TEST.EVAL_BEFORE_TRAINING = False
    # Inference speed, see docs/lab/inference_speed.md; metrics change by rounding. Test-time convolutions in half
    # precision (float16 on a GPU, bfloat16 on a CPU), and in the channels-last memory format.
    cfg.TEST.HALF_PRECISION = False
    cfg.TEST.CHANNELS_LAST = False
    # Whether `--eval-only` folds the backbone's batch normalization into its convolutions; metrics change by rounding.
    cfg.TEST.FOLD_BATCH_NORM = False
    cfg.TEST.PERSON_SEARCH = CfgNode()
    # Feature of a query: of its "ground_truth" box (SeqNet, NAE) or of the "detection" with the highest IoU with it
    # (CGPS).
    cfg.TEST.PERSON_SEARCH.QUERY_FEATURE = "ground_truth"
    # Gallery: "detections" or "ground_truth" boxes (the upper bound of a perfect detector).
    cfg.TEST.PERSON_SEARCH.GALLERY = "detections"
    # Custom datasets: whether to search the frames of other cameras alone as well, as is always done for PRW.
    cfg.TEST.PERSON_SEARCH.CROSS_CAMERA = False
    # Custom datasets from video (MOT): whether to search also without the query camera's frames that are fewer than
    # this many frames away, which are near-copies of the query's own; 0 for no.
    cfg.TEST.PERSON_SEARCH.MIN_FRAME_GAP = 0
    # Whether to search the same boxes with random vectors and with a color histogram as controls.
    cfg.TEST.PERSON_SEARCH.CONTROLS = True
    # Weights (any that MODEL.WEIGHTS takes) of a further control, the backbone without re-id training; "" for none.
    cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS = ""
    # Whether to multiply similarities by the detection score (SeqNet's CWS).
    cfg.TEST.PERSON_SEARCH.SCORE_WEIGHTED = True
    # Minimum score of the detections to search.
    cfg.TEST.PERSON_SEARCH.SCORE_THRESHOLD = 0.5
    # Whether `--eval-only` stores the network's outputs, so that other protocols need no network and an interrupted run
    # can continue (docs/evaluation.md). FOLDER "" is OUTPUT_DIR/inference/features.
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE = CfgNode()
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE.ENABLED = True
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE.FOLDER = ""
    # Whether to save detections, features, boxes and queries of the evaluation as problem.npz beside results.json.
    cfg.TEST.PERSON_SEARCH.SAVE_PROBLEM = False
    # Whether to write report.html, with metrics, breakdowns, and queries with their best detections.
    cfg.TEST.PERSON_SEARCH.REPORT = True
    # Context bipartite graph matching (SeqNet, which uses 30 and 4 for PRW, 10 and 3 for CUHK-SYSU).
    cfg.TEST.PERSON_SEARCH.CBGM = CfgNode()
    cfg.TEST.PERSON_SEARCH.CBGM.ENABLED = False
    cfg.TEST.PERSON_SEARCH.CBGM.K1 = 30
    cfg.TEST.PERSON_SEARCH.CBGM.K2 = 4
    # IoU with the query box above which detections show the query itself and are no context (SeqNet's model drops them
    # by NMS); 1 keeps all.
    cfg.TEST.PERSON_SEARCH.CBGM.QUERY_NMS = 0.5
    # k-reciprocal re-ranking.
    cfg.TEST.PERSON_SEARCH.RERANKING = CfgNode()
    cfg.TEST.PERSON_SEARCH.RERANKING.ENABLED = False
    cfg.TEST.PERSON_SEARCH.RERANKING.K1 = 20
    cfg.TEST.PERSON_SEARCH.RERANKING.K2 = 6
    cfg.TEST.PERSON_SEARCH.RERANKING.LAMBDA = 0.3
