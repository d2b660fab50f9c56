"""Detectron2's own keys are heeded or refused."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY
from person_search import add_ssl_config
from person_search.config_files import flatten
from person_search.engine.checks import (
    UNREAD_KEYS,
    check_config,
    check_image_keys,
    check_inference,
    check_schedule_keys,
    check_unread_keys,
)
from person_search.engine.solver import build_optimizer
from person_search.errors import ConfigError


def set_keys(cfg, *options):
    cfg.merge_from_list(list(options))
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.AUG.ENABLED", True, "each frame is searched at one size"),
        ("TEST.PRECISE_BN.ENABLED", True, "SSL.MEMORY.CALIBRATION_FRAMES"),
        ("MODEL.MASK_ON", True, "the only class is person"),
        ("MODEL.KEYPOINT_ON", True, "the only class is person"),
        ("MODEL.LOAD_PROPOSALS", True, "proposals come from the RPN"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 2, "the heads are configured by MODEL.BOX_HEAD and MODEL.REID_HEAD"),
        ("MODEL.RETINANET.NUM_CLASSES", 1, "the heads are configured by"),
        ("DATALOADER.REPEAT_THRESHOLD", 0.1, "each epoch draws every frame once"),
        ("INPUT.MASK_FORMAT", "bitmask", "in any format"),
    ],
)
def test_keys_without_effect_are_refused(narrow_cfg, key, value, message):
    with pytest.raises(ConfigError, match=f"{key} is {value!r}, but it is not used here .*{message}.*leave it at"):
        check_inference(set_keys(narrow_cfg, key, value))


@pytest.mark.parametrize("classes", [0, 2, 80])
def test_there_is_one_class(narrow_cfg, classes):
    with pytest.raises(ConfigError, match=f"MODEL.ROI_HEADS.NUM_CLASSES is {classes}, expected 1"):
        check_inference(set_keys(narrow_cfg, "MODEL.ROI_HEADS.NUM_CLASSES", classes))


def test_every_reason_belongs_to_keys_that_exist():
    keys = flatten(get_cfg())
    assert [start for start in UNREAD_KEYS if not any(key.startswith(start) for key in keys)] == []


def test_no_config_of_the_project_sets_a_key_without_effect(repository):
    files = sorted((repository / "projects" / "SSL" / "configs").rglob("*.yaml"))
    assert len(files) > 5
    for file in files:
        cfg = get_cfg()
        add_ssl_config(cfg)
        cfg.merge_from_file(str(file))
        check_unread_keys(cfg)
        check_image_keys(cfg)
        check_schedule_keys(cfg)


def test_heads_of_the_users_own_may_read_anything(narrow_cfg):
    @ROI_HEADS_REGISTRY.register()
    class HeadsOfAnother:
        pass

    try:
        options = ("MODEL.ROI_HEADS.NAME", "HeadsOfAnother", "MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 3)
        check_unread_keys(set_keys(narrow_cfg, *options))
    finally:
        ROI_HEADS_REGISTRY._obj_map.pop("HeadsOfAnother")


def test_keys_that_a_training_reads_are_not_refused(cfg, tmp_path, monkeypatch):
    """What construction, training and evaluation of a model look up, recorded; the table must name none of it."""
    from person_search.engine import PersonSearchTrainer

    read, get = set(), CfgNode.__getattr__

    def recording(node, name):
        value = get(node, name)
        place = node.__dict__.get("_place", "")
        if isinstance(value, CfgNode):
            value.__dict__["_place"] = f"{place}{name}."
        else:
            read.add(f"{place}{name}")
        return value

    (tmp_path / "run").mkdir()
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = ("synthetic_tiny_test",)
    check_config(cfg)
    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    trainer = PersonSearchTrainer(cfg)
    read = {key for key in read if key not in _read_by_the_check()}
    trainer.resume_or_load(False)
    trainer.train()
    assert "MODEL.RPN.NMS_THRESH" in read and "TEST.PERSON_SEARCH.GALLERY" in read
    assert sorted(key for key in read if key.startswith(tuple(UNREAD_KEYS))) == []


def _read_by_the_check():
    return {"MODEL.ROI_HEADS.NUM_CLASSES"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"), r"'range' expects \(smallest, largest\)"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "any"), "_SAMPLING is 'any', expected 'choice' or 'range'"),
        (
            ("INPUT.MAX_SIZE_TRAIN", 0),
            "INPUT.MAX_SIZE_TRAIN is 0, expected 1 or more: .*such as 100000",
        ),
        (("INPUT.MAX_SIZE_TEST", 0), "INPUT.MAX_SIZE_TEST is 0"),
        (("INPUT.MIN_SIZE_TEST", -1), "INPUT.MIN_SIZE_TEST is -1"),
        (("INPUT.RANDOM_FLIP", "both"), "INPUT.RANDOM_FLIP is 'both', expected 'none', 'horizontal' or 'vertical'"),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "square"), "INPUT.CROP.TYPE is 'square'"),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [2.0, 0.5]), "INPUT.CROP.SIZE is .* as fractions"),
        (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "l2"), "CLIP_TYPE is 'l2', expected 'full_model', 'norm' or 'value'"),
        (("SOLVER.WARMUP_METHOD", "slow"), "SOLVER.WARMUP_METHOD is 'slow', expected 'linear' or 'constant'"),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0), "SOLVER.BASE_LR_END is 1.0"),
        (("SOLVER.STEP_EPOCHS", (3, 2)), r"SOLVER.STEP_EPOCHS is \(3, 2\), expected increasing"),
        (("DATALOADER.TIMEOUT", -1.0), "DATALOADER.TIMEOUT is -1.0, expected 0 or more: seconds"),
    ],
)
def test_values_that_detectron2_stumbles_over_are_named(narrow_cfg, options, message):
    with pytest.raises(ConfigError, match=message):
        check_config(set_keys(narrow_cfg, "SOLVER.CLIP_GRADIENTS.ENABLED", True, *options))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", ["norm", "value", "full_model"])
def test_gradients_are_clipped_as_their_type_says(optimizer, kind):
    cfg = get_cfg()
    add_ssl_config(cfg)
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind)
    set_keys(cfg, *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1, "SOLVER.OPTIMIZER", optimizer, "SOLVER.STEPS", (5,))
    check_schedule_keys(cfg)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    before = build_optimizer(cfg, model)
    model(torch.full((2, 3), 100.0)).sum().backward()
    before.step()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    if kind == "full_model":
        assert float(norms.norm()) == pytest.approx(0.1, abs=1e-4)
    else:
        assert (float(norms.max()) if kind == "norm" else largest) == pytest.approx(0.1, abs=1e-4)
