"""Two sequential heads (SeqNet): the first detects, the second refines, embeds and scores the first's boxes."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .one_head import OneHeadROIHeads, suppress
from .resnet import build_res5, res5_channels


@ROI_HEADS_REGISTRY.register()
class PersonSearchROIHeads(OneHeadROIHeads):
    """SeqNet's heads: a Faster R-CNN head, whose refined boxes are matched and sampled again for the one behind it."""

    @configurable
    def __init__(
        self,
        *,
        first_res5: nn.Module,
        first_predictor: FastRCNNOutputLayers,
        first_score_thresh: float,
        first_nms_thresh: float,
        first_head_score: bool,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            first_res5, first_predictor: first head, Faster R-CNN's classifier and regressor on max-pooled res5.
            first_score_thresh, first_nms_thresh: what of the first head reaches the second at test time.
            first_head_score: whether the final score is the first head's (SeqNet's FCS).
            kwargs: arguments of `OneHeadROIHeads`, the second head.
        """
        super().__init__(**kwargs)
        self.first_res5, self.first_predictor = first_res5, first_predictor
        self.first_score_thresh, self.first_nms_thresh = first_score_thresh, first_nms_thresh
        self.first_head_score = first_head_score

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from a configuration and the backbone's output shape."""
        first_res5 = build_res5(cfg)
        first_predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=res5_channels(cfg)),
            box2box_transform=Box2BoxTransform(weights=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
            num_classes=1,
            cls_agnostic_bbox_reg=True,
            smooth_l1_beta=cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA,
            box_reg_loss_type=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE,
            loss_weight={"loss_box_reg": cfg.MODEL.FIRST_HEAD.BOX_LOSS_WEIGHT},
        )
        return {
            **super().from_config(cfg, input_shape),
            "first_res5": first_res5,
            "first_predictor": first_predictor,
            "first_score_thresh": cfg.MODEL.FIRST_HEAD.SCORE_THRESH_TEST,
            "first_nms_thresh": cfg.MODEL.FIRST_HEAD.NMS_THRESH_TEST,
            "first_head_score": cfg.MODEL.SECOND_HEAD.FIRST_HEAD_SCORE,
        }

    def _refine(
        self, images: ImageList, feature: Tensor, proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        sampled = self._sample("first_head", proposals, targets)
        predictions = self._predict_first(feature, [p.proposal_boxes for p in sampled])
        losses = self.first_predictor.losses(predictions, sampled)
        boxes = self.first_predictor.predict_boxes(tuple(p.detach() for p in predictions), sampled)
        refined = []
        for boxes_per_image, size in zip(boxes, images.image_sizes, strict=True):
            refined_boxes = Boxes(boxes_per_image.float())
            refined_boxes.clip(size)
            keep = refined_boxes.nonempty()
            # Sampling appends the ground truth with its logits, so the proposals need some too.
            logits = boxes_per_image.new_zeros(int(keep.sum()), dtype=torch.float32)
            refined.append(Instances(size, proposal_boxes=refined_boxes[keep], objectness_logits=logits))
        return refined, {"loss_cls_first": losses["loss_cls"], "loss_box_first": losses["loss_box_reg"]}

    def _detect_candidates(self, images: ImageList, feature: Tensor, proposals: list[Instances]) -> list[Instances]:
        predictions = self._predict_first(feature, [p.proposal_boxes for p in proposals])
        boxes = self.first_predictor.predict_boxes(predictions, proposals)
        scores = self.first_predictor.predict_probs(predictions, proposals)
        results = []
        for box, score, size in zip(boxes, scores, images.image_sizes, strict=True):
            instances = Instances(size, pred_boxes=Boxes(box.float()), scores=score[:, 0].float())
            instances.pred_boxes.clip(size)
            results.append(suppress(instances, self.first_score_thresh, self.first_nms_thresh, len(instances)))
            if not self.first_head_score:
                results[-1].remove("scores")
        return results

    def _predict_first(self, feature: Tensor, boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
        pooled = self.first_res5(self._pool(feature, boxes)).amax(dim=(2, 3))
        # Half precision would round scores to a few steps, and boxes to whole pixels.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.first_predictor(pooled.float())
