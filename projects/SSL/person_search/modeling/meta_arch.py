"""Meta-architecture: a GeneralizedRCNN with embedding heads, and the exemplar branch in training."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..errors import ExportError
from .embedding import PooledFeatures
from .exemplars import ExemplarBranch
from .heads import PersonSearchROIHeads
from .layers import fuse_frozen_norms
from .objectives.base import ReIDObjective, build_objective


class PooledPersons(NamedTuple):
    """Pooled features of the annotated persons of a batch, before the embedding.

    Attributes:
        instance_index: (P,) int64, bank rows.
        persons: features of P RoIs.
        exemplars: features of P * S exemplars, person by person; None without the exemplar branch.
    """

    instance_index: Tensor
    persons: PooledFeatures
    exemplars: PooledFeatures | None

    @property
    def parts(self) -> list[PooledFeatures]:
        """Features of the RoIs and, if any, of the exemplars."""
        return [self.persons] if self.exemplars is None else [self.persons, self.exemplars]


class PersonEmbeddings(NamedTuple):
    """Embeddings of the annotated persons of a batch.

    Attributes:
        instance_index: (P,) int64, bank rows.
        persons: (P, d), main-branch features.
        exemplars: (P, d), exemplar features averaged over scales (f^h of Eq. 5); None without the exemplar branch.
    """

    instance_index: Tensor
    persons: Tensor
    exemplars: Tensor | None


@META_ARCH_REGISTRY.register()
class SSLPersonSearch(GeneralizedRCNN):
    """SSL for weakly supervised person search (arXiv 2302.12986v1), or another method on the same detector.

    In training, `forward` returns the losses of the detector and of the objective (Eq. 13 for SSL). In evaluation, it
    returns a dict for each image, with "instances" (`pred_boxes`, `scores`, `pred_classes`, and `embeddings` (n, d) of
    unit length) in pixels of the original image, and "given_embeddings" (R, d) of the boxes in the input's
    "given_boxes" (R, 4), which are in pixels of the resized image.
    """

    roi_heads: PersonSearchROIHeads
    exemplar_branch: ExemplarBranch | None
    objective: ReIDObjective

    @configurable
    def __init__(
        self,
        *,
        exemplar_branch: ExemplarBranch | None,
        objective: ReIDObjective,
        size_divisibility: int,
        half_precision_test: bool,
        channels_last_test: bool,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            exemplar_branch: branch for multi-scale exemplars in training; None for none.
            objective: re-id losses and memory.
            size_divisibility: multiple that batch heights and widths are padded to; 0 for the backbone's own, which
                for a ResNet means no padding beyond the largest image.
            half_precision_test: whether to run test-time convolutions in half precision (float16 on a GPU, bfloat16 on
                a CPU).
            channels_last_test: whether to use the channels-last memory format at test time.
            kwargs: arguments of `GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        self.exemplar_branch = exemplar_branch
        self.objective = objective
        self.size_divisibility = size_divisibility
        self.half_precision_test, self.channels_last_test = half_precision_test, channels_last_test
        fuse_frozen_norms(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config."""
        kwargs = super().from_config(cfg)
        kwargs["exemplar_branch"] = _build_exemplar_branch(cfg, kwargs["backbone"], kwargs["roi_heads"])
        kwargs["objective"] = build_objective(cfg)
        kwargs["size_divisibility"] = cfg.INPUT.SIZE_DIVISIBILITY
        kwargs["half_precision_test"] = cfg.TEST.HALF_PRECISION
        kwargs["channels_last_test"] = cfg.TEST.CHANNELS_LAST
        return kwargs

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, detections in evaluation; see the class.

        Args:
            batched_inputs: inputs of `GeneralizedRCNN`; in training, "instances" also have `gt_instance_index`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        if self.vis_period > 0:
            self._visualize(batched_inputs, proposals)
        exemplars = None
        if self.exemplar_branch is not None:
            exemplars = functools.partial(self._exemplars, self.exemplar_branch, images.tensor, targets, batched_inputs)
        embeddings, detector_losses = self.roi_heads.forward_train(
            images, features, proposals, targets, exemplars, with_persons=self.objective.reads_persons
        )
        return {**losses, **detector_losses, **self.objective(embeddings)}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalized images, zero-padded (with the mean color) to a common size."""
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.size_divisibility or self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Any]]:
        """Detections with embeddings; see the class.

        Args:
            batched_inputs: images, optionally with "given_boxes".
            detected_instances: not supported; use "given_boxes".
            do_postprocess: whether to scale boxes to the original image.

        Raises:
            ExportError: the model is being traced, and the trace would be valid for this example only.
            ValueError: `detected_instances` is given.
        """
        if detected_instances is not None:
            raise ValueError("SSLPersonSearch embeds known boxes through the input 'given_boxes'")
        if torch.jit.is_tracing():
            _check_traceable(self, batched_inputs)
        images = self.preprocess_image(batched_inputs)
        given = None
        if any("given_boxes" in x for x in batched_inputs):
            none = torch.zeros(0, 4)
            given = [Boxes(x.get("given_boxes", none).to(self.device)) for x in batched_inputs]
        pixels = images.tensor
        if self.channels_last_test:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.half_precision_test):
            features = self.backbone(pixels)
            proposals, _ = self.proposal_generator(images, features, None)
            results, embeddings = self.roi_heads.forward_test(images, features, proposals, given)
        outputs = [{"instances": r} for r in results]
        if do_postprocess:
            outputs = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
        for output, given_embeddings in zip(outputs, embeddings, strict=True):
            output["given_embeddings"] = given_embeddings
        return outputs

    @torch.no_grad()
    def embed_persons(self, batched_inputs: list[dict[str, Any]]) -> PersonEmbeddings:
        """Features of the annotated persons, without detection (to fill the memory banks).

        Args:
            batched_inputs: images with "instances".
        """
        pooled = self.pool_persons(batched_inputs)
        rows = pooled.instance_index
        embeddings, _ = self.roi_heads.reid_head.embedding(PooledFeatures.cat(pooled.parts))
        if self.exemplar_branch is None:
            return PersonEmbeddings(rows, embeddings, None)
        of_persons, rest = embeddings[: len(rows)], embeddings[len(rows) :]
        averaged = rest.reshape(len(rows), self.exemplar_branch.per_person, -1).mean(dim=1) if len(rows) else rest
        return PersonEmbeddings(rows, of_persons, averaged)

    @torch.no_grad()
    def pool_persons(self, batched_inputs: list[dict[str, Any]]) -> PooledPersons:
        """Pooled features of the annotated persons and their exemplars.

        Args:
            batched_inputs: images with "instances".
        """
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        exemplars = None
        if self.exemplar_branch is not None:
            exemplars = self._exemplars(self.exemplar_branch, images.tensor, targets, batched_inputs)
        persons = self.roi_heads.pool_boxes(features, [t.gt_boxes for t in targets])
        return PooledPersons(torch.cat([t.gt_instance_index for t in targets]), persons, exemplars)

    def _exemplars(
        self, branch: ExemplarBranch, images: Tensor, targets: list[Instances], batched_inputs: list[dict[str, Any]]
    ) -> PooledFeatures:
        boxes = [x["instances"].gt_boxes.tensor for x in batched_inputs]
        return branch(images, targets, boxes, self.backbone, self.roi_heads.reid_head.res5)

    def _visualize(self, batched_inputs: list[dict[str, Any]], proposals: list[Any]) -> None:
        from detectron2.utils.events import get_event_storage

        if get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)


def _check_traceable(model: nn.Module, batched_inputs: list[dict[str, Any]]) -> None:
    """Raises an ExportError where a trace would hard-code values of this example."""
    given = any("given_boxes" in x for x in batched_inputs)
    if len(batched_inputs) != 1 or given:
        raise ExportError(
            f"cannot trace {len(batched_inputs)} images{' with given boxes' if given else ''}: the number of boxes per "
            "image would be fixed. Trace one image without given_boxes; the traced model then takes images of any "
            "size, one at a time"
        )
    fixed = {type(m).__name__ for m in model.modules() if getattr(m, "fixed_by_tracing", False)}
    if fixed:
        raise ExportError(
            f"cannot trace {', '.join(sorted(fixed))}: it depends on the size or the boxes of the example, and the "
            "file would fail on the next image. Run the model in Python, or train with another "
            "MODEL.ROI_BOX_HEAD.POOLING or MODEL.TIMM.NAME"
        )


def _build_exemplar_branch(cfg: CfgNode, backbone: nn.Module, roi_heads: PersonSearchROIHeads) -> ExemplarBranch | None:
    exemplar = cfg.SSL.EXEMPLAR
    if not exemplar.ENABLED:
        return None
    separate = None
    if not exemplar.SHARED_BACKBONE:
        separate = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "res5": copy.deepcopy(roi_heads.reid_head.res5)})
    background = None
    if exemplar.BACKGROUND == "black":
        colors = zip(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, strict=True)
        background = [-mean / deviation for mean, deviation in colors]
    return ExemplarBranch(
        scales=exemplar.SCALES,
        original=exemplar.ORIGINAL,
        mask_background=exemplar.MASK_BACKGROUND,
        background=background,
        pooling=roi_heads.reid_head.global_pooling,
        separate=separate,
        random_erasing=exemplar.RANDOM_ERASING,
    )
