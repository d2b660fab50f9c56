"""SeqNet's inference, written plainly from torchvision's public parts: what tests compare the main branch with."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.resnet import Bottleneck
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms, remove_small_boxes

FRAME = (140, 246)  # neither side is a multiple of the stride; it takes more to reach one of 32 than one of 16
# ImageNet's, for pixels from 0 to 255. SeqNet divides by 255 first, which differs only in rounding.
MEAN, DEVIATION = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NARROW, FULL = 8, 64  # channels of the stem; a ResNet-50 has 64


class Detections(NamedTuple):
    """What SeqNet returns of an image: xyxy boxes, scores and features of unit length."""

    boxes: Tensor
    scores: Tensor
    embeddings: Tensor


def resnet(width: int) -> nn.Module:
    """torchvision's ResNet-50, or the same with a stem of fewer channels."""
    if width == FULL:
        return torchvision.models.resnet50()
    parts = {"conv1": nn.Conv2d(3, width, 7, 2, 3, bias=False), "bn1": nn.BatchNorm2d(width)}
    channels = width
    for i, blocks in enumerate((3, 4, 6, 3)):
        planes, stride = width * 2**i, 1 if i == 0 else 2
        shortcut = nn.Sequential(nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
        first = Bottleneck(channels, planes, stride, shortcut)
        channels = 4 * planes
        parts[f"layer{i + 1}"] = nn.Sequential(first, *(Bottleneck(channels, planes) for _ in range(blocks - 1)))
    return nn.ModuleDict(parts)


class Reference(nn.Module):
    """SeqNet at test time, one image at a time. The names of its weights are those of SeqNet's public code."""

    def __init__(self, width: int, proposals: int, bn_neck: bool = True) -> None:
        super().__init__()
        body, other = resnet(width), resnet(width)
        res4, res5 = 16 * width, 32 * width
        self.transform = GeneralizedRCNNTransform(FRAME[0], 1500, MEAN, DEVIATION)
        self.backbone = nn.ModuleDict({name: getattr(body, name) for name in ("conv1", "bn1")})
        self.backbone.update({f"layer{i}": getattr(body, f"layer{i}") for i in (1, 2, 3)})
        anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
        counts = {"training": 2000, "testing": proposals}
        pre_nms = {"training": 12000, "testing": 6000}
        self.rpn = RegionProposalNetwork(anchors, RPNHead(res4, 15), 0.7, 0.3, 256, 0.5, pre_nms, counts, 0.7)
        heads = nn.Module()
        heads.box_head = nn.ModuleDict({"layer4": body.layer4})
        heads.reid_head = nn.ModuleDict({"layer4": other.layer4})
        heads.faster_rcnn_predictor = FastRCNNPredictor(res5, 2)
        linear = nn.Linear(res5, 8)
        regressor = nn.Sequential(linear, nn.BatchNorm1d(8)) if bn_neck else linear
        heads.box_predictor = nn.ModuleDict({"bbox_pred": regressor})
        projectors = {
            "feat_res4": nn.Sequential(nn.Linear(res4, 128), nn.BatchNorm1d(128)),
            "feat_res5": nn.Sequential(nn.Linear(res5, 128), nn.BatchNorm1d(128)),
        }
        embedding = {"projectors": nn.ModuleDict(projectors), "rescaler": nn.BatchNorm1d(1)}
        heads.embedding_head = nn.ModuleDict(embedding)
        heads.reid_loss = nn.Module()
        heads.reid_loss.register_buffer("lut", torch.zeros(7, 256))
        heads.reid_loss.register_buffer("cq", torch.zeros(5, 256))
        self.roi_heads = heads
        self.pool = MultiScaleRoIAlign(["feat_res4"], output_size=14, sampling_ratio=2)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def seqnet_state(self) -> dict[str, Tensor]:
        """The weights as a file of SeqNet's holds them (torchvision has since renamed the RPN's convolution)."""
        return {name.replace("conv.0.0.", "conv."): value for name, value in self.state_dict().items()}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.backbone["bn1"](self.backbone["conv1"](images)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for i in (1, 2, 3):
            x = self.backbone[f"layer{i}"](x)
        return {"feat_res4": x}

    def embed(self, pooled: Tensor, res5: Tensor) -> tuple[Tensor, Tensor]:
        """Features of unit length, and the logit of being a person."""
        projectors = self.roi_heads.embedding_head["projectors"]
        low = projectors["feat_res4"](pooled.amax(dim=(2, 3)))
        high = projectors["feat_res5"](res5)
        vector = torch.cat([low, high], dim=1)
        norm = vector.norm(dim=1, keepdim=True)
        return vector / norm, self.roi_heads.embedding_head["rescaler"](norm)[:, 0]

    def second_head(self, features: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Pooled res4 features, and res5 features by the re-id head's layers."""
        pooled = self.pool(features, [boxes], [size])
        return pooled, self.roi_heads.reid_head["layer4"](pooled).amax(dim=(2, 3))

    @torch.no_grad()
    def detect(self, image: Tensor) -> Detections:
        """Detects in an image (3, H, W), 0 to 255; boxes in its pixels."""
        images, _ = self.transform([image])
        size = images.image_sizes[0]
        features = self.features(images.tensors)
        (proposals,), _ = self.rpn(images, features)

        pooled = self.pool(features, [proposals], [size])
        res5 = self.roi_heads.box_head["layer4"](pooled).amax(dim=(2, 3))
        logits, deltas = self.roi_heads.faster_rcnn_predictor(res5)
        boxes = clip_boxes_to_image(self.coder.decode(deltas, [proposals])[:, 1], size)
        scores = logits.softmax(dim=1)[:, 1]
        boxes, scores = keep(scores > 0.5, boxes, scores)
        boxes, scores = keep(remove_small_boxes(boxes, 0.01), boxes, scores)
        boxes, scores = keep(nms(boxes, scores, 0.4)[:300], boxes, scores)

        pooled, res5 = self.second_head(features, boxes, size)
        deltas = self.roi_heads.box_predictor["bbox_pred"](res5)
        embeddings, _ = self.embed(pooled, res5)
        boxes = clip_boxes_to_image(self.coder.decode(deltas, [boxes])[:, 1], size)
        boxes, scores, embeddings = keep(remove_small_boxes(boxes, 0.01), boxes, scores, embeddings)
        boxes, scores, embeddings = keep(nms(boxes, scores, 0.5)[:300], boxes, scores, embeddings)
        return Detections(resize_boxes(boxes, size, image.shape[-2:]), scores, embeddings)

    @torch.no_grad()
    def embed_boxes(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Features of given boxes in pixels of the image, as for queries."""
        images, targets = self.transform([image], [{"boxes": boxes}])
        features = self.features(images.tensors)
        return self.embed(*self.second_head(features, targets[0]["boxes"], images.image_sizes[0]))[0]


def keep(index: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value[index] for value in values)


@torch.no_grad()
def randomize(reference: Reference, image: Tensor) -> None:
    """Weights as if trained: BN statistics that fit and are none of 0 and 1, scores on both sides of 0.5."""
    heads = reference.roi_heads
    norms = [m for m in reference.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.weight.uniform_(0.6, 1.4)
        norm.bias.normal_(std=0.2)
        norm.momentum = None
        norm.reset_running_stats()
    for block in [m for m in reference.modules() if isinstance(m, Bottleneck)]:
        block.bn3.weight *= 0.2  # as in trained networks; larger ones make chaos of rounding errors
    reference.rpn.head.cls_logits.bias.normal_()
    linears = [m for m in heads.modules() if isinstance(m, nn.Linear)]
    for linear in linears:
        linear.bias.normal_(std=0.2)
    # One forward pass in training mode, stage by stage, takes the statistics of the image itself.
    images, _ = reference.eval().transform([image])
    size = images.image_sizes[0]
    reference.backbone.train()
    features = reference.features(images.tensors)
    reference.backbone.eval()
    (proposals,), _ = reference.rpn(images, features)
    heads.train()
    pooled = reference.pool(features, [proposals], [size])
    first = heads.box_head["layer4"](pooled).amax(dim=(2, 3))
    pooled, second = reference.second_head(features, proposals, size)
    reference.embed(pooled, second)
    heads.box_predictor["bbox_pred"](second)
    reference.eval()
    for norm in norms:
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    first = heads.box_head["layer4"](pooled).amax(dim=(2, 3))
    scale(heads.faster_rcnn_predictor.cls_score, first, mean=(0.0, 0.8), std=1.0)
    scale(heads.faster_rcnn_predictor.bbox_pred, first, mean=(0.3,) * 8, std=0.5)
    last = heads.box_predictor["bbox_pred"]
    if isinstance(last, nn.Linear):
        scale(last, second, mean=(0.3,) * 8, std=1.5)
    else:
        last[1].weight *= 2.0  # moves boxes so far that the last suppression has something to do


def scale(linear: nn.Linear, features: Tensor, mean: tuple[float, ...], std: float) -> None:
    """Gives the outputs of a layer on features a mean and a deviation."""
    linear.bias.zero_()
    linear.weight *= std / linear(features).std(dim=0, keepdim=True).T
    linear.bias.copy_(torch.tensor(mean) - linear(features).mean(dim=0))


def make_image(size: tuple[int, int]) -> Tensor:
    """A uint8 RGB image (3, H, W) with structure at several scales."""
    coarse = torch.rand(1, 3, 8, 12)
    fine = torch.rand(1, 3, size[0] // 4, size[1] // 4)
    mixed = sum(F.interpolate(part, size=size, mode="bilinear") for part in (coarse, fine)) / 2
    return (mixed[0] * 255).to(torch.uint8)


class Case(NamedTuple):
    """A reference with weights, an image and what it found there."""

    reference: Reference
    image: Tensor
    expected: Detections


def make_case(width: int, proposals: int, bn_neck: bool = True) -> Case:
    torch.manual_seed(3)
    image = make_image(FRAME)
    reference = Reference(width, proposals, bn_neck)
    randomize(reference, image.float())
    return Case(reference, image, reference.detect(image.float()))
