"""RoI heads: a box head that refines proposals, a re-id head that embeds persons, and both in sequence (SeqNet)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms, cat
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .backbone import build_res5, res5_channels
from .embedding import Embedding, GlobalPooling, PooledFeatures, build_embedding
from .layers import BoxRegressor, build_pooler, running_statistics


@dataclass(frozen=True)
class TrainingEmbeddings:
    """Embeddings of a batch, the input of the re-id losses. All features are float32 and of unit length.

    Attributes:
        rois: (R, d) positive RoIs of the re-id head.
        roi_instance_index: (R,) int64, bank row of the person matched to each RoI.
        backgrounds: (G, d) negative RoIs of the re-id head.
        persons: (P, d) RoIs of the ground-truth boxes; None if the objective does not use them.
        instance_index: (P,) int64, bank row of each person.
        image_index: (P,) int64, position in the batch of each person's image.
        exemplars: (P, S, d) exemplars; None without the exemplar branch.
    """

    rois: Tensor
    roi_instance_index: Tensor
    backgrounds: Tensor
    persons: Tensor | None
    instance_index: Tensor
    image_index: Tensor
    exemplars: Tensor | None


class ReIDHead(nn.Module):
    """Re-id head: embedding, person score and box of each RoI (NAE; with other embeddings OIM and CGPS)."""

    @configurable
    def __init__(
        self,
        *,
        res5: nn.Module,
        regressor: BoxRegressor,
        embedding: Embedding,
        global_pooling: GlobalPooling,
        transform: Box2BoxTransform,
        smooth_l1_beta: float,
        box_loss_weight: float,
        cls_loss_weight: float,
    ) -> None:
        """
        Args:
            res5, regressor: res5 stage and box regressor of this head.
            embedding: embedding and person logit, see `build_embedding`.
            global_pooling: pooling of RoI features into vectors.
            transform, smooth_l1_beta: box coding and regression loss.
            box_loss_weight, cls_loss_weight: loss weights.
        """
        super().__init__()
        self.res5, self.regressor, self.embedding = res5, regressor, embedding
        self.global_pooling = global_pooling
        self.transform, self.smooth_l1_beta = transform, smooth_l1_beta
        self.box_loss_weight, self.cls_loss_weight = box_loss_weight, cls_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, channels: int) -> dict[str, Any]:
        """Constructor arguments from MODEL.REID_HEAD, for a backbone feature of `channels` channels.

        Raises:
            ConfigError: the kind of pooling or embedding is unknown.
        """
        keys, box_keys = cfg.MODEL.REID_HEAD, cfg.MODEL.ROI_BOX_HEAD
        pooling = GlobalPooling(keys.GLOBAL_POOLING, keys.STRIPES)
        # Channels after pooling, the input of the embedding and the regressor.
        res4_channels, pooled_channels = (keys.STRIPES * count for count in (channels, res5_channels(cfg)))
        return {
            "res5": build_res5(cfg),
            "regressor": BoxRegressor(pooled_channels, keys.BN_NECK),
            "embedding": build_embedding(keys.EMBEDDING, res4_channels, pooled_channels, keys.EMBEDDING_DIM),
            "global_pooling": pooling,
            "transform": Box2BoxTransform(weights=box_keys.BBOX_REG_WEIGHTS),
            "smooth_l1_beta": box_keys.SMOOTH_L1_BETA,
            "box_loss_weight": keys.BOX_LOSS_WEIGHT,
            "cls_loss_weight": keys.CLS_LOSS_WEIGHT,
        }

    def pool(self, res4: Tensor) -> PooledFeatures:
        """Pooled RoI features (R, C4, h, w), before and after res5."""
        return PooledFeatures(self.global_pooling(res4), self.global_pooling(self.res5(res4)))

    def losses(self, sampled: list[Instances], logits: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """Weighted detection losses.

        Args:
            sampled: RoIs of each image, with `gt_classes` and, if the image has ground truth, `gt_boxes`.
            logits: (R,) person logits of all RoIs.
            deltas: (R, 4) regressed box deltas of all RoIs.

        Returns:
            scalars "loss_reid_head_cls" and "loss_reid_head_box".
        """
        classes = cat([p.gt_classes for p in sampled])
        foreground = classes == 0
        total = max(len(classes), 1)
        boxes = cat([p.proposal_boxes.tensor for p in sampled])
        matched = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in sampled])
        box_loss = _dense_box_regression_loss(
            [boxes], self.transform, [deltas[None]], [matched], foreground[None], smooth_l1_beta=self.smooth_l1_beta
        )
        cls_loss = F.binary_cross_entropy_with_logits(logits, foreground.to(logits), reduction="sum")
        return {
            "loss_reid_head_cls": self.cls_loss_weight * cls_loss / total,
            "loss_reid_head_box": self.box_loss_weight * box_loss / total,
        }


class BoxHead(nn.Module):
    """Box head: Faster R-CNN's head, which refines the RPN's proposals for the re-id head (SeqNet)."""

    @configurable
    def __init__(
        self, *, res5: nn.Module, predictor: FastRCNNOutputLayers, score_thresh: float, nms_thresh: float
    ) -> None:
        """
        Args:
            res5, predictor: res5 stage, and Faster R-CNN's classifier and regressor on max-pooled res5.
            score_thresh, nms_thresh: score and NMS thresholds of the boxes passed on at test time.
        """
        super().__init__()
        self.res5, self.predictor = res5, predictor
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from MODEL.BOX_HEAD."""
        keys, box_keys = cfg.MODEL.BOX_HEAD, cfg.MODEL.ROI_BOX_HEAD
        res5 = build_res5(cfg)
        predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=res5_channels(cfg)),
            box2box_transform=Box2BoxTransform(weights=box_keys.BBOX_REG_WEIGHTS),
            num_classes=1,
            cls_agnostic_bbox_reg=True,
            smooth_l1_beta=box_keys.SMOOTH_L1_BETA,
            box_reg_loss_type=box_keys.BBOX_REG_LOSS_TYPE,
            loss_weight={"loss_box_reg": keys.BOX_LOSS_WEIGHT},
        )
        return {
            "res5": res5,
            "predictor": predictor,
            "score_thresh": keys.SCORE_THRESH_TEST,
            "nms_thresh": keys.NMS_THRESH_TEST,
        }

    def forward(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, 2) and box deltas (R, 4) of RoI features (R, C4, h, w)."""
        pooled = self.res5(res4).amax(dim=(2, 3))
        # Half precision would quantize scores coarsely, and boxes to whole pixels.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.predictor(pooled.float())

    def losses(self, predictions: tuple[Tensor, Tensor], sampled: list[Instances]) -> dict[str, Tensor]:
        """Weighted detection losses of the predictions of `forward` for sampled RoIs."""
        losses = self.predictor.losses(predictions, sampled)
        return {"loss_box_head_cls": losses["loss_cls"], "loss_box_head_box": losses["loss_box_reg"]}

    def refine(self, predictions: tuple[Tensor, Tensor], sampled: list[Instances]) -> list[Instances]:
        """Refined boxes as proposals, without gradient; boxes outside the image are dropped."""
        boxes = self.predictor.predict_boxes(tuple(p.detach() for p in predictions), sampled)
        refined = []
        for boxes_per_image, instances in zip(boxes, sampled, strict=True):
            refined_boxes = Boxes(boxes_per_image.float())
            refined_boxes.clip(instances.image_size)
            keep = refined_boxes.nonempty()
            # Sampling appends the ground truth with logits, so proposals need the field too.
            logits = boxes_per_image.new_zeros(int(keep.sum()), dtype=torch.float32)
            refined.append(
                Instances(instances.image_size, proposal_boxes=refined_boxes[keep], objectness_logits=logits)
            )
        return refined

    def detect(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Instances]:
        """Detections of each image for the re-id head, with `pred_boxes` and `scores`."""
        boxes = self.predictor.predict_boxes(predictions, proposals)
        scores = self.predictor.predict_probs(predictions, proposals)
        results = []
        for box, score, instances in zip(boxes, scores, proposals, strict=True):
            found = Instances(instances.image_size, pred_boxes=Boxes(box.float()), scores=score[:, 0].float())
            found.pred_boxes.clip(instances.image_size)
            results.append(suppress(found, self.score_thresh, self.nms_thresh))
        return results


@ROI_HEADS_REGISTRY.register()
class PersonSearchROIHeads(ROIHeads):
    """Two heads in sequence (SeqNet): `box_head` refines the RPN's proposals, which are matched and sampled again for
    `reid_head`. Without a `box_head`, `reid_head` takes the RPN's proposals. Entry points are `forward_train`,
    `forward_test` and `pool_boxes`."""

    reid_head: ReIDHead
    box_head: BoxHead | None

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        pooler: nn.Module,
        box_head: BoxHead | None,
        reid_head: ReIDHead,
        box_head_score: bool,
        objectness_thresh: float,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            in_feature: name of the pooled backbone feature.
            pooler: RoI pooler, shared by both heads.
            box_head: first head, or None.
            reid_head: head that detects and embeds.
            box_head_score: whether the final score is that of `box_head` (SeqNet's FCS).
            objectness_thresh: minimum objectness, in [0, 1], of an RPN proposal at test time.
            score_thresh, nms_thresh, detections_per_image: score and NMS thresholds and maximum number of detections.
            kwargs: arguments of Detectron2's `ROIHeads` (matching and sampling).
        """
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.pooler = pooler
        # Order matters: an optimizer's state identifies parameters by position.
        self.reid_head, self.box_head = reid_head, box_head
        self.box_head_score = box_head_score
        self.objectness_thresh = objectness_thresh
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_image = detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from a config and the backbone's output shape.

        Raises:
            ConfigError: the kind of pooling or embedding is unknown.
        """
        (in_feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shape = input_shape[in_feature]
        return {
            **super().from_config(cfg),
            "in_feature": in_feature,
            "pooler": build_pooler(cfg, shape),
            "reid_head": ReIDHead(cfg, shape.channels),
            "box_head": cls._build_box_head(cfg),
            "box_head_score": cfg.MODEL.REID_HEAD.BOX_HEAD_SCORE,
            "objectness_thresh": cfg.MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST,
            "score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @classmethod
    def _build_box_head(cls, cfg: CfgNode) -> BoxHead | None:
        return BoxHead(cfg)

    # ------------------------------------------------------------------ training

    def forward_train(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        exemplars: Callable[[], PooledFeatures] | None,
        with_persons: bool = True,
    ) -> tuple[TrainingEmbeddings, dict[str, Tensor]]:
        """Embeddings for the re-id losses, and detection losses.

        Batch statistics of res5 and the embedding come from the sampled RoIs alone, so the detector is trained the same
        whatever the re-id losses use. Annotated boxes and exemplars pass res5 with its running statistics, and the
        embedding with the batch statistics of the RoIs.

        Args:
            images: batch of images.
            features: output of the backbone.
            proposals: RPN proposals, one Instances per image.
            targets: ground truth with `gt_boxes`, `gt_classes` and `gt_instance_index`.
            exemplars: returns the pooled features of P * S exemplars, person by person; None without exemplars. Called
                after res5 has seen the RoIs, so that its running statistics are up to date.
            with_persons: whether to embed the annotated boxes.

        Returns:
            embeddings, and the losses of the heads (see `ReIDHead.losses` and `BoxHead.losses`).
        """
        feature = features[self.in_feature]
        # Masks would be copied to every sampled proposal, and only the exemplar branch reads them.
        targets = [_without_masks(t) for t in targets]
        losses: dict[str, Tensor] = {}
        if self.box_head is not None:
            sampled = self._sample("box_head", proposals, targets)
            predictions = self.box_head(self.pool(feature, [s.proposal_boxes for s in sampled]))
            losses.update(self.box_head.losses(predictions, sampled))
            proposals = self.box_head.refine(predictions, sampled)
        sampled = self._sample("reid_head", proposals, targets)
        pooled = self.reid_head.pool(self.pool(feature, [s.proposal_boxes for s in sampled]))
        others = []
        if with_persons:
            with running_statistics(self.reid_head.res5):
                others.append(self.pool_boxes(features, [t.gt_boxes for t in targets]))
        if exemplars is not None:
            others.append(exemplars())
        embeddings, logits = self.reid_head.embedding(pooled, PooledFeatures.cat(others) if others else None)
        losses.update(self.reid_head.losses(sampled, logits, self.reid_head.regressor(pooled.res5)))

        persons = sum(len(t) for t in targets)
        counts = [len(logits), persons if with_persons else 0]
        rois, of_persons, of_exemplars = embeddings.split([*counts, len(embeddings) - sum(counts)])
        by_person = (persons, -1 if persons else 1, self.reid_head.embedding.dim)
        output = _training_embeddings(
            sampled,
            targets,
            rois,
            persons=of_persons if with_persons else None,
            exemplars=None if exemplars is None else of_exemplars.reshape(by_person),
        )
        return output, losses

    def _sample(self, name: str, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        with get_event_storage().name_scope(name):
            return self.label_and_sample_proposals(proposals, targets)

    # ------------------------------------------------------------------ inference

    def forward_test(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances], given: list[Boxes] | None
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections with embeddings, and embeddings of given boxes from the same feature maps.

        Args:
            images: batch of images.
            features: output of the backbone.
            proposals: RPN proposals.
            given: boxes of each image to embed as well, in pixels of the resized image; None for none.

        Returns:
            for each image, Instances with `pred_boxes`, `scores`, `pred_classes` and `embeddings` (n, d), sorted by
            descending score; and for each image, embeddings (R, d) of the given boxes.
        """
        feature = features[self.in_feature]
        if self.objectness_thresh > 0:
            # NMS of the RPN is by descending objectness, so dropping low proposals afterwards changes no others.
            proposals = [p[p.objectness_logits.float().sigmoid() >= self.objectness_thresh] for p in proposals]
        found = self.candidates(feature, proposals)
        given = given or [Boxes(feature.new_zeros(0, 4)) for _ in found]
        boxes = [Boxes.cat([f.pred_boxes, g]) for f, g in zip(found, given, strict=True)]
        pooled = self.pool_boxes(features, boxes)
        embeddings, logits = self.reid_head.embedding(pooled)
        deltas = self.reid_head.regressor(pooled.res5)
        # Shapes, not len(): tracing keeps them dynamic, so a traced model accepts other numbers of boxes.
        counts = [b.tensor.shape[0] for f, g in zip(found, given, strict=True) for b in (f.pred_boxes, g)]
        detected = [
            self._finish(*parts)
            for parts in zip(
                found,
                deltas.split(counts)[0::2],
                logits.split(counts)[0::2],
                embeddings.split(counts)[0::2],
                strict=True,
            )
        ]
        return detected, list(embeddings.split(counts)[1::2])

    def pool_boxes(self, features: dict[str, Tensor], boxes: list[Boxes]) -> PooledFeatures:
        """Pooled features of boxes, image by image."""
        return self.reid_head.pool(self.pool(features[self.in_feature], boxes))

    def candidates(self, feature: Tensor, proposals: list[Instances]) -> list[Instances]:
        """Boxes for `reid_head` at test time as `pred_boxes`, with `scores` if `box_head` gives the final score."""
        if self.box_head is None:
            return [Instances(p.image_size, pred_boxes=p.proposal_boxes) for p in proposals]
        predictions = self.box_head(self.pool(feature, [p.proposal_boxes for p in proposals]))
        found = self.box_head.detect(predictions, proposals)
        if not self.box_head_score:
            for instances in found:
                instances.remove("scores")
        return found

    def _finish(self, found: Instances, deltas: Tensor, logits: Tensor, embeddings: Tensor) -> Instances:
        boxes = Boxes(self.reid_head.transform.apply_deltas(deltas, found.pred_boxes.tensor))
        boxes.clip(found.image_size)
        instances = Instances(
            found.image_size,
            pred_boxes=boxes,
            scores=found.scores if found.has("scores") else logits.sigmoid(),
            embeddings=embeddings,
        )
        instances = suppress(instances, self.score_thresh, self.nms_thresh, self.detections_per_image)
        instances.pred_classes = torch.zeros_like(instances.scores, dtype=torch.int64)
        return instances

    def pool(self, feature: Tensor, boxes: list[Boxes]) -> Tensor:
        """RoI features (R, C4, h, w) of the boxes of all images, in the memory format of the feature map."""
        pooled = self.pooler([feature], boxes)
        channels_last = not feature.is_contiguous() and feature.is_contiguous(memory_format=torch.channels_last)
        return pooled.contiguous(memory_format=torch.channels_last) if channels_last else pooled


@ROI_HEADS_REGISTRY.register()
class OneHeadROIHeads(PersonSearchROIHeads):
    """A single `reid_head` on the RPN's proposals, as in OIM, NAE and CGPS."""

    @classmethod
    def _build_box_head(cls, cfg: CfgNode) -> None:
        return None


def _without_masks(target: Instances) -> Instances:
    fields = {name: value for name, value in target.get_fields().items() if name != "gt_masks"}
    return Instances(target.image_size, **fields)


def _training_embeddings(
    sampled: list[Instances],
    targets: list[Instances],
    rois: Tensor,
    *,
    persons: Tensor | None,
    exemplars: Tensor | None,
) -> TrainingEmbeddings:
    """Embeddings with RoIs split into positives and negatives, and with bank rows and images."""
    foreground = cat([s.gt_classes == 0 for s in sampled])
    roi_instance_index = cat([
        s.gt_instance_index if s.has("gt_instance_index") else torch.zeros_like(s.gt_classes) for s in sampled
    ])  # fmt: skip
    image_index = [torch.full_like(t.gt_instance_index, i) for i, t in enumerate(targets)]
    return TrainingEmbeddings(
        rois=rois[foreground],
        roi_instance_index=roi_instance_index[foreground],
        backgrounds=rois[~foreground],
        persons=persons,
        instance_index=cat([t.gt_instance_index for t in targets]),
        image_index=cat(image_index),
        exemplars=exemplars,
    )


def suppress(instances: Instances, score_thresh: float, nms_thresh: float, most: int | None = None) -> Instances:
    """Detections after score threshold, removal of empty boxes and NMS, sorted by descending score.

    Args:
        instances: detections of an image, with `pred_boxes` and `scores`.
        score_thresh: minimum score.
        nms_thresh: IoU above which the lower-scored box is dropped.
        most: maximum number of detections; None for no limit.
    """
    # Boxes outside the image are clipped to slivers thinner than 0.01 pixels (SeqNet's value).
    instances = instances[(instances.scores >= score_thresh) & instances.pred_boxes.nonempty(0.01)]
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    return instances[batched_nms(boxes, scores, torch.zeros_like(scores), nms_thresh)[:most]]
