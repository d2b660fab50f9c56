#!/usr/bin/env python3
"""Makes foreground masks of a dataset's persons, which training uses to mask the background of its crops.

    python datasets/prepare_masks.py --dataset prw_train --provider mask_rcnn
    python datasets/prepare_masks.py --dataset prw_train --provider grabcut
    python datasets/prepare_masks.py --dataset prw_train --provider schp --parsing-dir parsing/

writes $DETECTRON2_DATASETS/masks/prw_train.json, the default mask file of training. After an interruption the same
command continues; masks of persons with changed boxes are made again.

Providers
    mask_rcnn  Detectron2's Mask R-CNN (R50-FPN, COCO). Its persons are matched one to one with the annotated boxes, by
               highest IoU >= 0.5; for unmatched boxes the mask head is run on the box itself.
    grabcut    OpenCV's GrabCut with the box as prior. Needs no weights; rough where background and clothes look alike.
    schp       Human-parsing PNGs as SCHP writes them, pixels = class numbers, 0 = background. DIR holds either one
               <image>.png for a frame (all its persons parsed) or one <image>_<k>.png for a person, the parsing of the
               box of the frame's annotation number k, counted from 0, at any size. <image> is the frame's image_id
               without its ending (for a frame of a video, the whole: clip.avi#frame=12.png).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.file_io import PathManager
from person_search.config import add_ssl_config, merge_file_and_options
from person_search.data import register_custom
from person_search.data.mapper import UnreadableImageError, read_frame
from person_search.data.masks import MaskStore, box_window, default_mask_file, limit_to_box
from person_search.data.registration import registered_records
from person_search.data.video import split_video_frame
from person_search.errors import DatasetError, exit_status
from person_search.io import probe_folder
from PIL import Image
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

Record = dict[str, Any]
Mask = np.ndarray | None  # (height, width) of the frame, bool; None for no mask
# Takes a record and its persons' boxes, (P, 4) xyxy; returns P masks.
Provider = Callable[[Record, np.ndarray], Sequence[Mask]]

SAVE_EVERY = 50  # images
WEIGHTS = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
PERSON_CLASS = 0  # of COCO


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a registered data set, e.g. prw_train")
    parser.add_argument("--config-file", default="", metavar="YAML", help="config whose DATASETS.CUSTOM has the set")
    parser.add_argument("--provider", required=True, choices=("mask_rcnn", "grabcut", "schp"))
    parser.add_argument("--parsing-dir", type=Path, metavar="DIR", help="folder of parsing PNGs, for schp")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="for mask_rcnn; by default downloaded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for mask_rcnn")
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default where training looks for it")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images; a later run does the others")
    args = parser.parse_args(arguments)
    if args.provider == "schp" and args.parsing_dir is None:
        parser.error("--provider schp needs --parsing-dir")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit is {args.limit}, expected 1 or more")
    out = args.out or default_mask_file(args.dataset)
    return exit_status(lambda: run(args, out), f"interrupted; the same command goes on from {part_file(out)}")


def run(args: argparse.Namespace, out: Path) -> None:
    """Makes the masks that the parsed arguments ask for, and prints how many there are."""
    register_own(args.config_file)
    check_writable(out)
    records = registered_records(args.dataset)[: args.limit]
    store = open_store(out, args.dataset, args.provider)
    provider = make_provider(args)
    if isinstance(provider, ParsingProvider):
        provider.check_covers(records)
    unreadable = make_masks(records, provider, store, out)
    persons = sum(len(person_boxes(record)) for record in records)
    print(f"{args.dataset}: {len(store)} masks for {persons} persons, {unreadable} images unreadable -> {out}")


def register_own(config_file: str) -> None:
    """Registers the custom datasets of a config; ConfigError if it is invalid."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, config_file, [])
    register_custom(cfg.DATASETS.CUSTOM)


def make_provider(args: argparse.Namespace) -> Provider:
    """Provider named on the command line."""
    if args.provider == "grabcut":
        return grabcut_provider
    if args.provider == "schp":
        return ParsingProvider(args.parsing_dir)
    cfg = mask_rcnn_config()
    cfg.MODEL.DEVICE = args.device
    check_device(args.device)
    cfg.MODEL.WEIGHTS = str(find_weights(args.weights))
    return MaskRCNNProvider(cfg)


def check_device(device: str) -> None:
    """Raises a DatasetError if the device for mask_rcnn is unknown or missing."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"--device {device} cannot be used ({reason}); give another, such as cpu") from error


def check_writable(out: Path) -> None:
    """Raises a DatasetError, before any work is done, if `out` cannot be written."""
    try:
        probe_folder(out.parent)
    except OSError as error:
        raise DatasetError(f"{out} cannot be written ({error}); choose another place with --out") from error


def part_file(out: Path) -> Path:
    """Unfinished file of an interrupted run."""
    return out.with_name(out.name + ".part")


def open_store(out: Path, dataset: str, provider: str) -> MaskStore:
    """Store of an earlier run, or an empty one.

    Raises:
        DatasetError: the earlier run used another provider or dataset.
    """
    for file in (part_file(out), out):
        if file.exists():
            store = MaskStore.load(file)
            if (store.dataset, store.provider) != (dataset, provider):
                raise DatasetError(
                    f"{file} holds masks of {store.dataset} by {store.provider}, not of {dataset} by {provider}; "
                    "remove it or choose another --out"
                )
            return store
    return MaskStore(dataset, provider)


def make_masks(records: Sequence[Record], provider: Provider, store: MaskStore, out: Path) -> int:
    """Adds missing masks to the store, and writes it to `out` at the end, atomically.

    In between, and when interrupted after the first image, the store is saved to `part_file(out)`.

    Returns:
        Number of images that cannot be read; each is logged in one line.

    Raises:
        DatasetError: the provider's files or weights are invalid, or `out` cannot be written.
    """
    # Parsing PNGs may have been added since; the other providers would fail again.
    # Parsing PNGs may have been added since; the other providers would fail again where they have failed.
    known = store.get if isinstance(provider, ParsingProvider) else store.has
    todo = [r for r in records if not all(known(r["image_id"], box) for box in person_boxes(r))]
    unreadable = 0
    progress = tqdm(total=len(records), initial=len(records) - len(todo), unit="image", desc=store.provider)
    try:
        for number, record in enumerate(todo, start=1):
            try:
                add_masks(record, provider, store)
            except UnreadableImageError as error:
                progress.write(f"skipped: {error}", file=sys.stderr)
                unreadable += 1
            progress.update()
            if number % SAVE_EVERY == 0:
                store.save(part_file(out))
    except BaseException:
        if store.frames:
            store.save(part_file(out))
        raise
    finally:
        progress.close()
    store.save(out)
    part_file(out).unlink(missing_ok=True)
    return unreadable


def add_masks(record: Record, provider: Provider, store: MaskStore) -> None:
    """Adds the masks of a frame, each limited to the pixels that its box touches."""
    boxes = person_boxes(record)
    for box, mask in zip(boxes, provider(record, boxes), strict=True):
        store.add(record["image_id"], box, None if mask is None else limit_to_box(mask, box))


def person_boxes(record: Record) -> np.ndarray:
    """Boxes of the persons of a record: float64 (P, 4), xyxy in pixels."""
    boxes = [annotation["bbox"] for annotation in record["annotations"] if not annotation.get("iscrowd", 0)]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


GRABCUT_MARGIN = 0.3  # fraction of the box's sides: background for the color model
GRABCUT_SIDE = 192  # pixels of the crop's longer side; more costs time without a gain at re-id scale
GRABCUT_ROUNDS = 2  # more lose limbs in the color of the street


def grabcut_provider(record: Record, boxes: np.ndarray) -> list[Mask]:
    """Masks of the boxes of a frame by GrabCut."""
    image = read_frame(record, "BGR")
    return [grabcut(image, box) for box in boxes]


def grabcut(image: np.ndarray, box: np.ndarray) -> Mask:
    """Mask of the person in a box by color (GrabCut, Rother et al. 2004).

    Args:
        image: uint8 (H, W, 3).
        box: xyxy in pixels.

    Returns:
        bool (H, W); None if the box is too small to separate person and background.
    """
    height, width = image.shape[:2]
    window = box_window(box, height, width, GRABCUT_MARGIN)
    crop = image[window]
    scale = min(1.0, GRABCUT_SIDE / max(*crop.shape[:2], 1))
    size = tuple(max(round(side * scale), 1) for side in crop.shape[1::-1])
    offset = np.array([window[1].start, window[0].start] * 2)
    prior = grabcut_prior((box - offset) * scale, size[1], size[0])
    if len(np.unique(prior & 1)) < 2:  # the lowest bit means foreground; GrabCut needs both values
        return None
    cv2.setRNGSeed(0)  # color clusters are initialized at random, and the same person must get the same mask
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    cv2.grabCut(small, prior, None, np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = np.zeros((height, width), dtype=bool)
    foreground = largest_part((prior & 1).astype(np.uint8))
    mask[window] = cv2.resize(foreground, crop.shape[1::-1], interpolation=cv2.INTER_LINEAR_EXACT) > 127
    return mask


def grabcut_prior(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Initial labels of a crop's pixels for GrabCut: uint8 (height, width) of OpenCV's GC_* values.

    Outside the box is background; an upright ellipse in it is probably the person, and its core certainly. Without the
    core, persons in the colors of their surroundings vanish.
    """
    prior = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    prior[box_window(box, height, width)] = cv2.GC_PR_BGD
    y, x = np.mgrid[:height, :width] + 0.5
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 1e-6)
    for share_x, share_y, label in ((0.85, 1.0, cv2.GC_PR_FGD), (0.3, 0.85, cv2.GC_FGD)):
        ellipse = ((x - centre[0]) / (share_x * half[0])) ** 2 + ((y - centre[1]) / (share_y * half[1])) ** 2 < 1
        prior[ellipse & (prior != cv2.GC_BGD)] = label
    return prior


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Largest connected part of a 0/1 mask, uint8 (H, W), as 0/255."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA]  # the first is the background
    return (labels == 1 + areas.argmax()).astype(np.uint8) * 255 if len(areas) else mask


class ParsingProvider:
    """Provider that reads parsing PNGs from a folder (SCHP, Li et al. 2019): every class but 0 is foreground."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"--parsing-dir {folder} is not a folder")
        self.folder = folder

    def check_covers(self, records: Sequence[Record]) -> None:
        """Raises a DatasetError if the folder has a parsing for none of the persons, that is, if its names differ."""
        stems = [(self._stem(record), len(person_boxes(record))) for record in records]
        if stems and not any(file.exists() for stem, persons in stems for file in self._files(stem, persons)):
            whole, person = self._files(stems[0][0], 1)
            raise DatasetError(
                f"--parsing-dir {self.folder} has no parsing of these frames: expected {whole} or {person}"
            )

    def _stem(self, record: Record) -> Path:
        name = record["image_id"]
        return self.folder / (name if split_video_frame(name) else Path(name).with_suffix(""))

    @staticmethod
    def _files(stem: Path, persons: int) -> list[Path]:
        """Parsing of a whole frame, then those of each person's box."""
        return [stem.with_name(f"{stem.name}.png"), *(stem.with_name(f"{stem.name}_{k}.png") for k in range(persons))]

    def __call__(self, record: Record, boxes: np.ndarray) -> list[Mask]:
        whole_file, *person_files = self._files(self._stem(record), len(boxes))
        shape = (record["height"], record["width"])
        whole = self._read(whole_file) if whole_file.exists() else None
        if whole is not None and whole.shape != shape:
            raise DatasetError(f"{whole_file}: height x width is {list(whole.shape)}, its frame's is {list(shape)}")
        return [self._person(file, box, shape, whole) for file, box in zip(person_files, boxes, strict=True)]

    def _person(self, file: Path, box: np.ndarray, shape: tuple[int, int], whole: Mask) -> Mask:
        window = box_window(box, *shape)
        size = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        if not file.exists() or 0 in size:
            return whole
        mask = np.zeros(shape, dtype=bool)
        mask[window] = cv2.resize(self._read(file).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        return mask

    @staticmethod
    def _read(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                mode, classes = image.mode, np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(f"{file}: not a readable PNG ({error})") from error
        if mode not in ("P", "L"):
            raise DatasetError(f"{file}: a {mode} image; expected class numbers (palette or greyscale), as SCHP writes")
        return classes > 0


def mask_rcnn_config() -> CfgNode:
    """Detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x, without its training settings.

    Written out, since `detectron2.model_zoo` needs a module that setuptools 82 has removed.
    """
    cfg = get_cfg()
    model = cfg.MODEL
    model.MASK_ON = True
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.PRE_NMS_TOPK_TEST = 1000
    model.RPN.POST_NMS_TOPK_TEST = 1000
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.3
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_FC = 2
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.NUM_CONV = 4
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    return cfg


def find_weights(file: Path | None) -> Path:
    """Weights file, downloaded by Detectron2 if none is given.

    Raises:
        DatasetError: it is missing, or cannot be downloaded; the message names the file to download by hand.
    """
    if file is not None:
        if not file.is_file():
            raise DatasetError(f"--weights {file} does not exist")
        return file
    try:
        return Path(PathManager.get_local_path(f"detectron2://{WEIGHTS}"))
    except Exception as error:  # the download library raises various types
        raise DatasetError(
            f"the weights of Mask R-CNN cannot be downloaded ({error}); fetch "
            f"https://dl.fbaipublicfiles.com/detectron2/{WEIGHTS} and give the file as --weights"
        ) from error


def load_weights(model: torch.nn.Module, file: str) -> None:
    """Loads weights; DatasetError if the file is damaged or lacks a parameter of the model."""
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # marks parameters that the file lacks
    try:
        DetectionCheckpointer(model).load(file)
    except Exception as error:  # unpickling may raise anything
        raise DatasetError(f"{file}: cannot be read as weights ({type(error).__name__}: {error})") from error
    missing = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    if missing:
        raise DatasetError(f"{file}: not the weights of this Mask R-CNN, it lacks {missing[0]} ({len(missing)} in all)")


class MaskRCNNProvider:
    """Provider that runs Detectron2's Mask R-CNN."""

    def __init__(self, cfg: CfgNode) -> None:
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.image_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, record: Record, boxes: np.ndarray) -> list[Mask]:
        image = read_frame(record, self.image_format)
        transform = self.resize.get_transform(image)
        resized = torch.as_tensor(transform.apply_image(image).astype("float32").transpose(2, 0, 1).copy())
        images = self.model.preprocess_image([{"image": resized}])
        features = self.model.backbone(images.tensor)
        proposals, _ = self.model.proposal_generator(images, features, None)
        detected, _ = self.model.roi_heads(images, features, proposals, None)
        given = Instances(images.image_sizes[0])
        given.pred_boxes = Boxes(torch.as_tensor(transform.apply_box(boxes), dtype=torch.float32)).to(self.model.device)
        given.pred_classes = torch.full((len(boxes),), PERSON_CLASS, device=self.model.device)
        given.row = torch.arange(len(boxes), device=self.model.device)  # empty boxes are dropped later
        given = self.model.roi_heads.forward_with_given_boxes(features, [given])[0]
        given = detector_postprocess(given, *image.shape[:2]).to("cpu")
        found = detected[0][detected[0].pred_classes == PERSON_CLASS]
        found = detector_postprocess(found, *image.shape[:2]).to("cpu")
        masks: list[Mask] = [None] * len(boxes)
        for row, mask in zip(given.row.tolist(), given.pred_masks.numpy(), strict=True):
            masks[row] = mask
        for row, detection in match_boxes(boxes, found.pred_boxes.tensor.numpy()):
            masks[row] = found.pred_masks[detection].numpy()
        return masks


def match_boxes(annotated: np.ndarray, detected: np.ndarray, min_iou: float = 0.5) -> list[tuple[int, int]]:
    """Pairs of annotated and detected boxes, one to one, with the maximum sum of IoUs.

    Args:
        annotated: (P, 4) xyxy.
        detected: (D, 4) xyxy.
        min_iou: minimum IoU of a pair.

    Returns:
        (index of the annotated box, index of the detected box) of each pair.
    """
    iou = pairwise_iou(Boxes(torch.as_tensor(annotated)), Boxes(torch.as_tensor(detected))).numpy()
    iou = np.where(iou >= min_iou, iou, 0.0)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-iou), strict=True) if iou[i, j] > 0]


if __name__ == "__main__":
    sys.exit(main())
