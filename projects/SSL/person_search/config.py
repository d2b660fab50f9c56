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
    """A configuration of this project, or of a file, to change and to train with.

    Args:
        name: one of the package, such as "prw" or "ablations/dml", or the path of a YAML file; "": defaults alone.
        options: KEY VALUE KEY VALUE ..., as on a command line.

    Raises:
        ConfigError: there is no such file, a key does not exist, or a value does not fit.
    """
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, name, options)
    return cfg


def add_ssl_config(cfg: CfgNode) -> None:
    """Adds every key of this project to `cfg`, in place. "Paper" is arXiv 2302.12986v1, sections and equations are its.

    Args:
        cfg: a configuration made by `detectron2.config.get_cfg()`.
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
    # Whoever merges a file by Detectron2's own means is told the new name; `merge_file_and_options` takes the old one.
    for old, new in RENAMED_KEYS.items():
        cfg.register_renamed_key(old, new)


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets of one's own: a list of mappings, see datasets/README.md.
    cfg.DATASETS.CUSTOM = []
    # Torchvision's ImageNet weights expect RGB.
    cfg.INPUT.FORMAT = "RGB"
    # Whether training reads the persons' identities, as supervised methods must and no other may.
    cfg.INPUT.IDENTITIES = False
    # JSON files of foreground masks, one for each of DATASETS.TRAIN; empty: $DETECTRON2_DATASETS/masks/<dataset>.json.
    cfg.INPUT.PERSON_MASKS = []
    # How images are resized: "pillow" (Detectron2's way, which filters what gets smaller) or "torchvision" (plain
    # bilinear interpolation of floats, sizes rounded down: what SeqNet was trained and measured with).
    cfg.INPUT.RESIZE = "pillow"
    # Heights and widths of a batch are padded to multiples of this (SeqNet: 32); 0: to what the backbone asks for, a
    # ResNet to the size of the largest image.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # Grouping by aspect ratio makes a batch depend on those before it, so that a run could not resume exactly.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # Seconds to wait for a batch of the worker processes before the run ends with what may be wrong; 0: for ever.
    cfg.DATALOADER.TIMEOUT = 300.0


def _add_detector_keys(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "SSLPersonSearch"
    # "PersonSearchROIHeads": SeqNet's two sequential heads; "OneHeadROIHeads": the second alone, on RPN proposals.
    cfg.MODEL.ROI_HEADS.NAME = "PersonSearchROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    # Sides in pixels that a proposal must exceed: Detectron2's key and value, but open to fractions (SeqNet: 0.001).
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0.0

    # The network of MODEL.BACKBONE.NAME "build_timm_backbone": any of timm's with stages of strides 16 and 32, under
    # timm's name. MODEL.WEIGHTS says what it starts from (docs/weights.md).
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite2"
    # Stride at the end of the trunk: 16, or 8, where the trunk's last stage is dilated instead of strided, for small
    # persons. It takes twice the time and more.
    cfg.MODEL.TIMM.STRIDE = 16
    # Batch normalisation with the statistics and scales that the weights bring, as MODEL.RESNETS.NORM "FrozenBN".
    cfg.MODEL.TIMM.FROZEN_NORM = True

    # Proposals below this objectness (a probability) do not reach the heads at test time; 0: all do (SeqNet).
    cfg.MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST = 0.0

    # Box head (Faster R-CNN); its refined boxes are the re-id head's proposals (SeqNet).
    cfg.MODEL.BOX_HEAD = CfgNode()
    # Weight of the smooth-L1 regression loss (SeqNet; every other detection weight is 1).
    cfg.MODEL.BOX_HEAD.BOX_LOSS_WEIGHT = 10.0
    # At test time only boxes of at least this score, after this NMS, reach the re-id head (SeqNet).
    cfg.MODEL.BOX_HEAD.SCORE_THRESH_TEST = 0.5
    cfg.MODEL.BOX_HEAD.NMS_THRESH_TEST = 0.4

    # Re-id head, or the only one: box regression and embedding. Its NMS is MODEL.ROI_HEADS.NMS_THRESH_TEST.
    cfg.MODEL.REID_HEAD = CfgNode()
    cfg.MODEL.REID_HEAD.BOX_LOSS_WEIGHT = 1.0
    cfg.MODEL.REID_HEAD.CLS_LOSS_WEIGHT = 1.0
    # The final score of a detection is the box head's (SeqNet's FCS); False: the re-id head's own, as it always is
    # where there is no box head.
    cfg.MODEL.REID_HEAD.BOX_HEAD_SCORE = True
    # "norm_aware" (NAE): from res4 and res5, the norm tells persons from background; with a classifier of its own
    # "linear" (OIM): from res5, "fused_linear" (CGPS): from res4 and res5, and "bn_neck": both normalised, without a
    # projection, which suits pretrained backbones and short trainings (EMBEDDING_DIM is then all of their channels).
    cfg.MODEL.REID_HEAD.EMBEDDING = "norm_aware"
    # Dimension of the re-id feature; of a norm-aware one half comes from res4 and half from res5.
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 256
    # How RoI features become vectors: "max" (NAE, SeqNet, CGPS) or "average" (OIM).
    cfg.MODEL.REID_HEAD.GLOBAL_POOLING = "max"
    # Horizontal stripes that are pooled apart, so that the vector keeps what is above and what below; 1: none (paper).
    cfg.MODEL.REID_HEAD.STRIPES = 1
    # Batch normalisation after the box regressor (SeqNet's BN neck).
    cfg.MODEL.REID_HEAD.BN_NECK = True

    # How RoI features are pooled: "align" or "deformable" (the ICCV 2023 text of the paper).
    cfg.MODEL.ROI_BOX_HEAD.POOLING = "align"

    # What trains the re-id features: SSLObjective, or a method that it is compared with (docs/methods.md).
    cfg.MODEL.OBJECTIVE = CfgNode()
    cfg.MODEL.OBJECTIVE.NAME = "SSLObjective"


def _add_exemplar_keys(cfg: CfgNode) -> None:
    cfg.SSL = CfgNode()
    # The multi-scale exemplar branch (paper, section 3.2). Only training uses it.
    cfg.SSL.EXEMPLAR = CfgNode()
    cfg.SSL.EXEMPLAR.ENABLED = True
    # Fixed scales of Eq. 1, (height, width) in pixels; () leaves the original scale alone.
    cfg.SSL.EXEMPLAR.SCALES = ((112, 48), (224, 96), (448, 192))
    # Whether the crop at its own size in the resized scene (scale "o") takes part.
    cfg.SSL.EXEMPLAR.ORIGINAL = True
    # Multiply each crop by the person's foreground mask (Eq. 1). Without masks the crops stay as they are.
    cfg.SSL.EXEMPLAR.MASK_BACKGROUND = True
    # What is left of the background then: "black", since Eq. 1 multiplies pixels, or the "mean" colour (0 in what the
    # network sees).
    cfg.SSL.EXEMPLAR.BACKGROUND = "black"
    # The paper does not say whether the exemplar backbone is the main branch's; sharing it halves memory and lets
    # the scale-invariant loss act on the features used at test time. False: a copy of its own.
    cfg.SSL.EXEMPLAR.SHARED_BACKBONE = True
    # Beyond the paper: share of the exemplars in which training paints a random rectangle in the mean colour.
    cfg.SSL.EXEMPLAR.RANDOM_ERASING = 0.0


def _add_memory_keys(cfg: CfgNode) -> None:
    # Memory banks (Eq. 5 and 6).
    cfg.SSL.MEMORY = CfgNode()
    # Weight of the NEW feature in the update of a row (Eq. 5).
    cfg.SSL.MEMORY.LAMBDA = 0.8
    # Rows are renormalised after an update, since every similarity assumes unit length (the paper is silent).
    cfg.SSL.MEMORY.RENORMALIZE = True
    # What pseudo labels are predicted from: "mean" of both banks (Eq. 6) or "instance", the main branch's alone.
    cfg.SSL.MEMORY.LABEL_SOURCE = "mean"
    # Frames, spread evenly over the training set, whose persons calibrate the statistics of the embedding's batch
    # normalisation before the banks are filled: those of an untrained embedding are placeholders, under which all
    # persons look alike. 0: leave them as they are.
    cfg.SSL.MEMORY.CALIBRATION_FRAMES = 50


def _add_clustering_keys(cfg: CfgNode) -> None:
    # Cluster labels (self-paced, as CGPS and SpCL).
    cfg.SSL.CLUSTERING = CfgNode()
    # Epochs from one clustering to the next.
    cfg.SSL.CLUSTERING.PERIOD = 1
    # What is clustered: the "bank" rows as LABEL_SOURCE joins them (paper, Eq. 6), or features that the current network
    # is made to "extract" from all boxes before each clustering (as SpCL's successors do). Eq. 5 alone writes the
    # banks.
    cfg.SSL.CLUSTERING.FEATURES = "bank"
    # Named an approximate search of neighbours, slower than the exact one below 100,000 boxes.
    cfg.register_deprecated_key("SSL.CLUSTERING.SEARCH")
    # Move the mean feature of every camera to the mean of all before distances are taken. The paper uses no cameras.
    cfg.SSL.CLUSTERING.CAMERA_AWARE = False
    # Neighbours of the k-reciprocal encoding and of its local query expansion.
    cfg.SSL.CLUSTERING.K1 = 30
    cfg.SSL.CLUSTERING.K2 = 6
    # What clusters the distances: "dbscan" (paper), or "hdbscan", which may also split what a radius joins. Both read
    # EPS and MIN_SAMPLES.
    cfg.SSL.CLUSTERING.ALGORITHM = "dbscan"
    # Radii: the middle one gives the clusters, the others judge how reliable each is. A single one judges nothing.
    cfg.SSL.CLUSTERING.EPS = (0.68, 0.70, 0.72)
    # Beyond the paper: a share, such as 0.005. The middle radius is then the distance that this share of the pairs of
    # persons of one image does not exceed, and at most that of EPS; the others keep their differences from it. Such
    # persons are different people for certain, so that no identity is needed to see where two of them begin to be near,
    # while what a distance means differs from network to network and with K1. None: the radii are those of EPS.
    cfg.SSL.CLUSTERING.EPS_QUANTILE = None
    cfg.SSL.CLUSTERING.MIN_SAMPLES = 4
    # Persons of one image are different people: of a cluster's members in one image only the one nearest to the
    # cluster's centre stays (CGPS, whose clustering the paper takes over).
    cfg.SSL.CLUSTERING.SAME_IMAGE_RULE = True
    # Beyond the paper. Before the clustering, keep the distances of pairs that match one to one across two images
    # alone, each the other's nearest there. Those that are left match once more.
    cfg.SSL.CLUSTERING.ONE_TO_ONE = False
    # Beyond the paper. A person keeps its cluster only where it fits the last epoch's: the IoU of both is the largest
    # among the cluster's members, and at least 0.5.
    cfg.SSL.CLUSTERING.CONSENSUS = False
    # Quantile of the clusters' independence scores that is frozen as the threshold at the first clustering.
    cfg.SSL.CLUSTERING.INDEPENDENCE_QUANTILE = 0.9


def _add_teacher_keys(cfg: CfgNode) -> None:
    # Beyond the paper: a teacher, the exponential moving average of the network, fills the banks before each clustering
    # and is what is evaluated. MOMENTUM is the weight of its old value in each iteration: it looks back over some
    # 1 / (1 - MOMENTUM) of them.
    cfg.SSL.TEACHER = CfgNode()
    cfg.SSL.TEACHER.ENABLED = False
    cfg.SSL.TEACHER.MOMENTUM = 0.999


def _add_threshold_keys(cfg: CfgNode) -> None:
    # Dynamic multi-label threshold t(e) = INITIAL + ALPHA * exp(BETA * e) (Eq. 9); ALPHA 0 keeps it fixed.
    cfg.SSL.THRESHOLD = CfgNode()
    # "none": t(e) is the similarity itself (paper). "same_image": t(e) is a quantile, and the threshold is what that
    # share of the similarities of persons of one image, who are different people for certain, does not exceed. What a
    # similarity means differs from network to network; a share of known negatives means the same everywhere.
    cfg.SSL.THRESHOLD.CALIBRATION = "none"
    cfg.SSL.THRESHOLD.INITIAL = 0.6
    cfg.SSL.THRESHOLD.ALPHA = 0.1
    cfg.SSL.THRESHOLD.BETA = -0.1


def _add_loss_keys(cfg: CfgNode) -> None:
    # Weights of Eq. 13 (all 1 in the paper); a weight of 0 leaves the loss out and does not compute it.
    cfg.SSL.SCALE_LOSS = CfgNode()
    cfg.SSL.SCALE_LOSS.WEIGHT = 1.0
    # m and gamma of Eq. 2.
    cfg.SSL.SCALE_LOSS.MARGIN = 0.3
    cfg.SSL.SCALE_LOSS.GAMMA = 0.05

    cfg.SSL.MULTI_LABEL_LOSS = CfgNode()
    cfg.SSL.MULTI_LABEL_LOSS.WEIGHT = 1.0
    # delta of Eq. 11. The arXiv text gives no value; 5 is MMCL's, whose loss this is, and the ICCV text's.
    cfg.SSL.MULTI_LABEL_LOSS.DELTA = 5.0
    # Share of the negatives that count, the most similar first: 1 is Eq. 11, 0.01 is MMCL's hard-negative mining.
    cfg.SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO = 1.0
    # "sum" over the persons of the batch (Eq. 11), so that its weight against the other losses, which are means, grows
    # with the batch; "mean" (MMCL's code): it does not, but is then smaller by the number of persons.
    cfg.SSL.MULTI_LABEL_LOSS.REDUCTION = "sum"

    # Beyond the paper: keeps the RoIs of different persons of one image apart. The excess of their similarity over
    # MARGIN, averaged with the softmax of the excess as weight. 0 leaves it out.
    cfg.SSL.IN_SCENE_LOSS = CfgNode()
    cfg.SSL.IN_SCENE_LOSS.WEIGHT = 0.0
    cfg.SSL.IN_SCENE_LOSS.MARGIN = 0.7

    # L_cluster (CGPS's hybrid contrastive loss).
    cfg.SSL.CLUSTER_LOSS = CfgNode()
    cfg.SSL.CLUSTER_LOSS.WEIGHT = 1.0
    cfg.SSL.CLUSTER_LOSS.TEMPERATURE = 0.05
    # Share of the negatives' softmax mass that the hardest clusters have to cover to count.
    cfg.SSL.CLUSTER_LOSS.HARD_NEGATIVE_MASS = 0.6
    # Added to probabilities before the logarithm, and to the softmax's denominator: the gradient of a feature far from
    # its cluster fades. 0: none; 1e-6 is CGPS's code.
    cfg.SSL.CLUSTER_LOSS.EPSILON = 0.0


def _add_method_keys(cfg: CfgNode) -> None:
    # Online instance matching (OIMObjective), which NAE and SeqNet train with, too.
    cfg.OIM = CfgNode()
    cfg.OIM.WEIGHT = 1.0
    # Slots of the circular queue of persons without identity: 500 for PRW, 5000 for CUHK-SYSU (SeqNet). The lookup
    # table has a row for each identity of the training set.
    cfg.OIM.QUEUE_SIZE = 500
    # Weight of the OLD row of the table in an update.
    cfg.OIM.MOMENTUM = 0.5
    # Divisor of the similarities: 1/30 in NAE and SeqNet; the first implementation of OIM took 1/10.
    cfg.OIM.TEMPERATURE = 1.0 / 30.0

    # CGPSObjective, on top of SSL.MEMORY, SSL.CLUSTERING and SSL.CLUSTER_LOSS. The values are its public code's.
    cfg.CGPS = CfgNode()
    # Weight of the detection context's loss, margin of its hinges, and weight of the one that keeps background away.
    cfg.CGPS.CONTEXT_WEIGHT = 1.0
    cfg.CGPS.MARGIN = 0.3
    cfg.CGPS.BACKGROUND_WEIGHT = 0.25

    # RSiamNetObjective, on top of the same keys; its crops are those of SSL.EXEMPLAR. Its code is not public, so that
    # weights of 1 (as between all other losses) and the temperature of SSL.CLUSTER_LOSS are this project's choice.
    cfg.RSIAMNET = CfgNode()
    # Weight of the consistency between a person's region and its crop.
    cfg.RSIAMNET.REGION_WEIGHT = 1.0
    # Weight of the consistency between persons' similarities in the scenes and among the crops, and their divisor.
    cfg.RSIAMNET.SIMILARITY_WEIGHT = 1.0
    cfg.RSIAMNET.SIMILARITY_TEMPERATURE = 0.05


def _add_schedule_keys(cfg: CfgNode) -> None:
    # Length and learning-rate steps in epochs (paper, section 4.2), turned into iterations from the size of the
    # data set and of the batch. SOLVER.MAX_ITER and SOLVER.STEPS take over where MAX_ITER is above 0.
    cfg.SOLVER.MAX_EPOCH = 26
    cfg.SOLVER.STEP_EPOCHS = (16, 22)
    cfg.SOLVER.MAX_ITER = 0
    cfg.SOLVER.STEPS = ()
    # Checkpoints and evaluations in epochs; 0 leaves it to SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 1
    cfg.TEST.EVAL_EPOCHS = 0
    # Checkpoints kept beside the final one, the newest.
    cfg.SOLVER.CHECKPOINTS_KEPT = 2
    # Iterations from one line of metrics to the next.
    cfg.SOLVER.LOG_PERIOD = 20
    # "SGD" (the paper) or "AdamW", which learns sooner where there are no pre-trained weights.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Clips the norm of all gradients together. Detectron2's own types clip each parameter alone.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"


def _add_evaluation_keys(cfg: CfgNode) -> None:
    # Also evaluate the network before its first iteration, to compare with.
    cfg.TEST.EVAL_BEFORE_TRAINING = False
    # Speed of inference, see docs/lab/inference_speed.md; metrics change by rounding. Convolutions at test time in half
    # precision (float16 on a GPU, bfloat16 on a CPU), and with the channels of a pixel side by side in memory.
    cfg.TEST.HALF_PRECISION = False
    cfg.TEST.CHANNELS_LAST = False
    # `--eval-only` folds the backbone's batch normalisation into its convolutions: the same metrics but for rounding.
    cfg.TEST.FOLD_BATCH_NORM = False
    cfg.TEST.PERSON_SEARCH = CfgNode()
    # Feature of a query: of its "ground_truth" box (SeqNet, NAE) or of the "detection" with the highest IoU to it
    # (CGPS).
    cfg.TEST.PERSON_SEARCH.QUERY_FEATURE = "ground_truth"
    # What is searched: the "detections", or the "ground_truth" boxes (the bound that a perfect detector would reach).
    cfg.TEST.PERSON_SEARCH.GALLERY = "detections"
    # Custom sets: also search the frames of other cameras alone. PRW is searched both ways in any case.
    cfg.TEST.PERSON_SEARCH.CROSS_CAMERA = False
    # Own sets from video (MOT): also search without the frames of the query's camera that are nearer than so many
    # frames, which are near-copies of its own; 0: do not.
    cfg.TEST.PERSON_SEARCH.MIN_FRAME_GAP = 0
    # Controls: also search the same boxes by random vectors and by a colour histogram, beside which the figures stand.
    cfg.TEST.PERSON_SEARCH.CONTROLS = True
    # A further control: the backbone with these weights (any that MODEL.WEIGHTS takes), without re-id training. "": no
    # such control.
    cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS = ""
    # Multiply similarities by the detection score (SeqNet's CWS).
    cfg.TEST.PERSON_SEARCH.SCORE_WEIGHTED = True
    # Detections below this score are not searched.
    cfg.TEST.PERSON_SEARCH.SCORE_THRESHOLD = 0.5
    # `--eval-only` keeps what the network returns for each frame, so that other protocols need no network and an
    # interrupted run goes on where it was (docs/evaluation.md). FOLDER "": OUTPUT_DIR/inference/features.
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE = CfgNode()
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE.ENABLED = True
    cfg.TEST.PERSON_SEARCH.FEATURE_STORE.FOLDER = ""
    # Also keep detections, features, boxes and queries of the evaluation, as problem.npz beside results.json.
    cfg.TEST.PERSON_SEARCH.SAVE_PROBLEM = False
    # Write report.html, which shows the metrics, what is behind them, and some queries with their best detections.
    cfg.TEST.PERSON_SEARCH.REPORT = True
    # Context bipartite graph matching (SeqNet; 30 and 4 are its for PRW, 10 and 3 for CUHK-SYSU).
    cfg.TEST.PERSON_SEARCH.CBGM = CfgNode()
    cfg.TEST.PERSON_SEARCH.CBGM.ENABLED = False
    cfg.TEST.PERSON_SEARCH.CBGM.K1 = 30
    cfg.TEST.PERSON_SEARCH.CBGM.K2 = 4
    # Detections that overlap the query box by more than this IoU show the query itself and are no context (SeqNet's
    # model drops them by its NMS); 1 keeps them.
    cfg.TEST.PERSON_SEARCH.CBGM.QUERY_NMS = 0.5
    # k-reciprocal re-ranking.
    cfg.TEST.PERSON_SEARCH.RERANKING = CfgNode()
    cfg.TEST.PERSON_SEARCH.RERANKING.ENABLED = False
    cfg.TEST.PERSON_SEARCH.RERANKING.K1 = 20
    cfg.TEST.PERSON_SEARCH.RERANKING.K2 = 6
    cfg.TEST.PERSON_SEARCH.RERANKING.LAMBDA = 0.3
