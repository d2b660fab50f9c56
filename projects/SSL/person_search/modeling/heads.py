"""RoI heads: one that refines proposals, one that detects and embeds persons, and both in sequence (SeqNet)."""

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
from .embedding import GlobalPooling, PooledFeatures, build_embedding
from .layers import BoxRegressor, build_pooler, running_statistics


@dataclass(frozen=True)
class TrainingEmbeddings:
    """Embeddings of one batch, which the re-id losses read. Every feature is float32 of unit length.

    Attributes:
        rois: (R, d) positive RoIs of the head that embeds.
        roi_instance_index: (R,) int64, the bank row of the person that each RoI is matched to.
        backgrounds: (G, d) its negative RoIs.
        persons: (P, d) the RoIs of the ground-truth boxes; None where the objective does not read them.
        instance_index: (P,) int64, bank row of each person.
        image_index: (P,) int64, position in the batch of each person's image.
        exemplars: (P, S, d) features of the exemplars, None without the exemplar branch.
    """

    rois: Tensor
    roi_instance_index: Tensor
    backgrounds: Tensor
    persons: Tensor | None
    instance_index: Tensor
    image_index: Tensor
    exemplars: Tensor | None


class ReIDHead(nn.Module):
    """The head that embeds persons, tells them from background and places their boxes (NAE's; OIM's and CGPS's with
    another embedding)."""

    @configurable
    def __init__(
        self,
        *,
        res5: nn.Module,
        regressor: BoxRegressor,
        embedding: nn.Module,
        global_pooling: GlobalPooling,
        transform: Box2BoxTransform,
        smooth_l1_beta: float,
        box_loss_weight: float,
        cls_loss_weight: float,
    ) -> None:
        """
        Args:
            res5, regressor: res5 of the head and its box regressor.
            embedding: gives embedding and person logit, see `build_embedding`.
            global_pooling: how RoI features become vectors.
            transform, smooth_l1_beta: box coding and loss.
            box_loss_weight, cls_loss_weight: loss weights.
        """
        super().__init__()
        self.res5, self.regressor, self.embedding = res5, regressor, embedding
        self.global_pooling = global_pooling
        self.transform, self.smooth_l1_beta = transform, smooth_l1_beta
        self.box_loss_weight, self.cls_loss_weight = box_loss_weight, cls_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, channels: int) -> dict[str, Any]:
        """Arguments of the head that MODEL.REID_HEAD describes, on a backbone feature of `channels` channels.

        Raises:
            ConfigError: the kind of pooling or embedding does not exist.
        """
        keys, box_keys = cfg.MODEL.REID_HEAD, cfg.MODEL.ROI_BOX_HEAD
        pooling = GlobalPooling(keys.GLOBAL_POOLING, keys.STRIPES)
        # Channels of what the embedding and the regressor read.
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
        """Vectors of RoI features (R, C4, h, w) and of what res5 makes of them."""
        return PooledFeatures(self.global_pooling(res4), self.global_pooling(self.res5(res4)))

    def losses(self, sampled: list[Instances], logits: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """Weighted detection losses.

        Args:
            sampled: for each image its RoIs with `gt_classes` and, where there is ground truth, `gt_boxes`.
            logits: (R,) person logits of all RoIs.
            deltas: (R, 4) their regressed boxes.
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
    """Faster R-CNN's head, which refines the RPN's proposals for the head behind it (SeqNet)."""

    @configurable
    def __init__(
        self, *, res5: nn.Module, predictor: FastRCNNOutputLayers, score_thresh: float, nms_thresh: float
    ) -> None:
        """
        Args:
            res5, predictor: Faster R-CNN's classifier and regressor on max-pooled res5.
            score_thresh, nms_thresh: what of it reaches the head behind at test time.
        """
        super().__init__()
        self.res5, self.predictor = res5, predictor
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the head that MODEL.BOX_HEAD describes."""
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
        # Half precision would round scores to a few steps, and boxes to whole pixels.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.predictor(pooled.float())

    def losses(self, predictions: tuple[Tensor, Tensor], sampled: list[Instances]) -> dict[str, Tensor]:
        """Weighted detection losses of what `forward` gave for sampled RoIs."""
        losses = self.predictor.losses(predictions, sampled)
        return {"loss_box_head_cls": losses["loss_cls"], "loss_box_head_box": losses["loss_box_reg"]}

    def refine(self, predictions: tuple[Tensor, Tensor], sampled: list[Instances]) -> list[Instances]:
        """Refined boxes as proposals, without gradient; those that leave the image are gone."""
        boxes = self.predictor.predict_boxes(tuple(p.detach() for p in predictions), sampled)
        refined = []
        for boxes_per_image, instances in zip(boxes, sampled, strict=True):
            refined_boxes = Boxes(boxes_per_image.float())
            refined_boxes.clip(instances.image_size)
            keep = refined_boxes.nonempty()
            # Sampling appends the ground truth with its logits, so the proposals need some too.
            logits = boxes_per_image.new_zeros(int(keep.sum()), dtype=torch.float32)
            refined.append(
                Instances(instances.image_size, proposal_boxes=refined_boxes[keep], objectness_logits=logits)
            )
        return refined

    def detect(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Instances]:
        """`pred_boxes` and `scores` of each image that reach the head behind."""
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
    """SeqNet's two heads in sequence: `box_head` refines the RPN's proposals, which are matched and sampled again for
    `reid_head`. Without a `box_head` the latter works on the RPN's proposals. See `forward_train`, `forward_test` and
    `pool_boxes`."""

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
            in_feature: name of the backbone feature that is pooled.
            pooler: pools RoI features, for both heads.
            box_head: the head in front, or None.
            reid_head: the head that detects and embeds.
            box_head_score: whether the final score is that of the head in front (SeqNet's FCS).
            objectness_thresh: probability of being an object that a proposal of the RPN needs at test time.
            score_thresh, nms_thresh, detections_per_image: what is returned.
            kwargs: arguments of Detectron2's `ROIHeads` (matching and sampling).
        """
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.pooler = pooler
        # In this order: an optimizer's state names parameters by their place.
        self.reid_head, self.box_head = reid_head, box_head
        self.box_head_score = box_head_score
        self.objectness_thresh = objectness_thresh
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_image = detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from a configuration and the backbone's output shape.

        Raises:
            ConfigError: the kind of pooling or embedding does not exist.
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
        """Detection losses, and the features that the re-id losses read.

        Batch statistics, of res5 and of the embedding, are those of the sampled RoIs alone: the detector learns the
        same whatever the re-id losses read besides. Annotated boxes and exemplars pass res5 with its running
        statistics, and the embedding with those of the RoIs.

        Args:
            images: the batch.
            features: the backbone's output.
            proposals: the RPN's, one Instances an image.
            targets: ground truth with `gt_boxes`, `gt_classes` and `gt_instance_index`.
            exemplars: gives the pooled features of P * S exemplars, person by person; None without them. It is called
                when the head's res5 has seen the RoIs, so that its running statistics are those of now.
            with_persons: whether the features of the annotated boxes are wanted.

        Returns:
            the features, and the losses of the heads, see `ReIDHead.losses` and `BoxHead.losses`.
        """
        feature = features[self.in_feature]
        # Masks would be copied to every sampled proposal, and only the exemplar branch reads them.
        targets = [_without_masks(t) for t in targets]
        losses: dict[str, Tensor] = {}
        if self.box_head is not None:
            sampled = self._sample("box_head", proposals, targets)
            predictions = self.box_head(self._pool(feature, [s.proposal_boxes for s in sampled]))
            losses.update(self.box_head.losses(predictions, sampled))
            proposals = self.box_head.refine(predictions, sampled)
        sampled = self._sample("reid_head", proposals, targets)
        pooled = self.reid_head.pool(self._pool(feature, [s.proposal_boxes for s in sampled]))
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
        output = _training_embeddings(sampled, targets, rois)
        if with_persons:
            output["persons"] = of_persons
        if exemplars is not None:
            output["exemplars"] = of_exemplars.reshape(persons, -1 if persons else 1, self.reid_head.embedding.dim)
        return TrainingEmbeddings(**output), losses

    def _sample(self, name: str, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        with get_event_storage().name_scope(name):
            return self.label_and_sample_proposals(proposals, targets)

    # ------------------------------------------------------------------ inference

    def forward_test(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances], given: list[Boxes] | None
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detects and embeds persons, and embeds given boxes from the same feature maps.

        Args:
            images: the batch.
            features: the backbone's output.
            proposals: the RPN's.
            given: for each image the boxes (in pixels of the resized image) whose embedding is wanted too.

        Returns:
            for each image Instances with `pred_boxes`, `scores`, `pred_classes` and `embeddings` (n, d), by falling
            score; and for each image the embeddings (R, d) of the given boxes.
        """
        feature = features[self.in_feature]
        if self.objectness_thresh > 0:
            # The RPN's suppression goes by falling objectness: what is dropped here would have kept nothing else out.
            proposals = [p[p.objectness_logits.float().sigmoid() >= self.objectness_thresh] for p in proposals]
        found = self._candidates(feature, proposals)
        given = given or [Boxes(feature.new_zeros(0, 4)) for _ in found]
        boxes = [Boxes.cat([f.pred_boxes, g]) for f, g in zip(found, given, strict=True)]
        pooled = self.pool_boxes(features, boxes)
        embeddings, logits = self.reid_head.embedding(pooled)
        deltas = self.reid_head.regressor(pooled.res5)
        # Shapes instead of len(): tracing keeps them open, so that a traced model takes images with other counts.
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
        """Pooled vectors of boxes, image after image."""
        return self.reid_head.pool(self._pool(features[self.in_feature], boxes))

    def _candidates(self, feature: Tensor, proposals: list[Instances]) -> list[Instances]:
        """Boxes that `reid_head` looks at in inference, as `pred_boxes`; with `scores` where those are to be final."""
        if self.box_head is None:
            return [Instances(p.image_size, pred_boxes=p.proposal_boxes) for p in proposals]
        predictions = self.box_head(self._pool(feature, [p.proposal_boxes for p in proposals]))
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

    def _pool(self, feature: Tensor, boxes: list[Boxes]) -> Tensor:
        pooled = self.pooler([feature], boxes)
        side_by_side = not feature.is_contiguous() and feature.is_contiguous(memory_format=torch.channels_last)
        return pooled.contiguous(memory_format=torch.channels_last) if side_by_side else pooled


@ROI_HEADS_REGISTRY.register()
class OneHeadROIHeads(PersonSearchROIHeads):
    """`reid_head` alone on the RPN's proposals, as in OIM, NAE and CGPS."""

    @classmethod
    def _build_box_head(cls, cfg: CfgNode) -> None:
        return None


def _without_masks(target: Instances) -> Instances:
    fields = {name: value for name, value in target.get_fields().items() if name != "gt_masks"}
    return Instances(target.image_size, **fields)


def _training_embeddings(sampled: list[Instances], targets: list[Instances], rois: Tensor) -> dict[str, Tensor | None]:
    """Parts the RoIs into positive and negative ones and names the bank row of everything."""
    foreground = cat([s.gt_classes == 0 for s in sampled])
    roi_instance_index = cat([
        s.gt_instance_index if s.has("gt_instance_index") else torch.zeros_like(s.gt_classes) for s in sampled
    ])  # fmt: skip
    image_index = [torch.full_like(t.gt_instance_index, i) for i, t in enumerate(targets)]
    return {
        "rois": rois[foreground],
        "roi_instance_index": roi_instance_index[foreground],
        "backgrounds": rois[~foreground],
        "persons": None,
        "instance_index": cat([t.gt_instance_index for t in targets]),
        "image_index": cat(image_index),
        "exemplars": None,
    }


def suppress(instances: Instances, score_thresh: float, nms_thresh: float, most: int | None = None) -> Instances:
    """Drops low scores and empty boxes, then overlapping boxes; at most `most` (all) stay, by falling score."""
    # Thinner than a hundredth of a pixel is what clipping leaves of boxes outside the image (SeqNet's value).
    instances = instances[(instances.scores >= score_thresh) & instances.pred_boxes.nonempty(0.01)]
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    return instances[batched_nms(boxes, scores, torch.zeros_like(scores), nms_thresh)[:most]]
