"""Converting weights of SeqNet and torchvision into ours and back, and what tools/convert_weights.py refuses."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from person_search import add_ssl_config
from person_search.engine import PersonSearchCheckpointer
from person_search.errors import CheckpointError
from person_search.weights.resnet import (
    complete_exemplar_backbone,
    convert_torchvision_resnet,
    convert_torchvision_resnet50,
    is_torchvision_resnet,
)
from person_search.weights.seqnet import convert_seqnet, convert_to_seqnet, is_person_search, is_seqnet
from torch import Tensor, nn

from ..programs import load_program

ROOT = Path(__file__).resolve().parent.parent.parent
tool = load_program(ROOT / "tools" / "convert_weights.py")


def torchvision_names() -> list[str]:
    with torch.device("meta"):
        return list(torchvision.models.resnet50().state_dict())


def resnet_state() -> dict[str, Tensor]:
    """A ResNet-50's names, each with one number of its own."""
    counter = "num_batches_tracked"
    return {n: torch.tensor(7) if n.endswith(counter) else torch.rand(1) for n in torchvision_names()}


def norm_state(size: int) -> dict[str, Tensor]:
    values = {name: torch.rand(size) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**values, "num_batches_tracked": torch.tensor(5)}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def linear_state(rows: int) -> dict[str, Tensor]:
    return {"weight": torch.rand(rows, 3), "bias": torch.rand(rows)}


def seqnet_state(bn_neck: bool = True, conv: str = "conv") -> dict[str, Tensor]:
    """What torch.save(SeqNet().state_dict()) names, with few columns."""
    resnet = {n: v for n, v in resnet_state().items() if not n.startswith("fc.")}
    body = {n: v for n, v in resnet.items() if not n.startswith("layer4.")}
    layer4 = {n: v for n, v in resnet.items() if n.startswith("layer4.")}
    neck = {**under("0", linear_state(8)), **under("1", norm_state(8))} if bn_neck else linear_state(8)
    return {
        **under("backbone", body),
        **under(f"rpn.head.{conv}", linear_state(4)),
        **under("rpn.head.cls_logits", linear_state(15)),
        **under("rpn.head.bbox_pred", linear_state(60)),
        **under("roi_heads.box_head", layer4),
        **under("roi_heads.reid_head", {n: v + 1 for n, v in layer4.items()}),
        **under("roi_heads.box_predictor.bbox_pred", neck),
        **under("roi_heads.embedding_head.projectors.feat_res4.0", linear_state(6)),
        **under("roi_heads.embedding_head.projectors.feat_res4.1", norm_state(6)),
        **under("roi_heads.embedding_head.projectors.feat_res5.0", linear_state(6)),
        **under("roi_heads.embedding_head.projectors.feat_res5.1", norm_state(6)),
        **under("roi_heads.embedding_head.rescaler", norm_state(1)),
        **under("roi_heads.reid_loss", {"lut": torch.rand(4, 6), "cq": torch.rand(2, 6)}),
        **under("roi_heads.faster_rcnn_predictor.cls_score", linear_state(2)),
        **under("roi_heads.faster_rcnn_predictor.bbox_pred", linear_state(8)),
    }


def narrow_model() -> nn.Module:
    """The model of configs/seqnet.yaml at an eighth of the width."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(str(ROOT / "projects" / "SSL" / "configs" / "seqnet.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    return build_model(cfg)


def our_names() -> set[str]:
    """The weights that inference reads, as the model itself names them."""
    return {name for name in narrow_model().state_dict() if not name.startswith("objective.")}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(value, b[name]) for name, value in a.items())


# ---------------------------------------------------------------------------- names


def test_seqnet_gives_every_weight_of_the_model_and_nothing_else():
    converted, unused = convert_seqnet(seqnet_state())
    assert set(converted) == our_names()
    assert unused == ["roi_heads.reid_loss.cq", "roi_heads.reid_loss.lut"]


def test_rows_of_anchors_classes_and_boxes():
    state = seqnet_state()
    state["rpn.head.cls_logits.bias"] = torch.arange(15.0)
    converted, _ = convert_seqnet(state)
    # SeqNet: ratio 0.5 at sizes 32 to 512, then ratio 1, then 2. Here: size 32 at the three ratios, then 64, ...
    assert converted["proposal_generator.rpn_head.objectness_logits.bias"].tolist() == [
        *(0, 5, 10), *(1, 6, 11), *(2, 7, 12), *(3, 8, 13), *(4, 9, 14)
    ]  # fmt: skip
    deltas = state["rpn.head.bbox_pred.weight"].reshape(3, 5, 4, 3)  # ratio, size, delta, channel
    expected = deltas.transpose(0, 1).reshape(60, 3)
    assert torch.equal(converted["proposal_generator.rpn_head.anchor_deltas.weight"], expected)
    background, person = state["roi_heads.faster_rcnn_predictor.cls_score.weight"]
    assert torch.equal(converted["roi_heads.box_head.predictor.cls_score.weight"], torch.stack([person, background]))
    for theirs, name in (
        ("roi_heads.faster_rcnn_predictor.bbox_pred.bias", "roi_heads.box_head.predictor.bbox_pred.bias"),
        ("roi_heads.box_predictor.bbox_pred.0.weight", "roi_heads.reid_head.regressor.linear.weight"),
        ("roi_heads.box_predictor.bbox_pred.1.running_var", "roi_heads.reid_head.regressor.norm.running_var"),
    ):
        assert torch.equal(converted[name], state[theirs][4:])


@pytest.mark.parametrize("bn_neck", [True, False])
def test_ours_to_seqnet_to_ours_is_identity(bn_neck):
    ours, _ = convert_seqnet(seqnet_state(bn_neck))
    assert ("roi_heads.reid_head.regressor.norm.weight" in ours) == bn_neck
    theirs, unused = convert_to_seqnet(ours)
    assert unused == []
    assert equal(convert_seqnet(theirs)[0], ours)


@pytest.mark.parametrize("bn_neck", [True, False])
def test_seqnet_to_ours_to_seqnet_keeps_all_that_is_read(bn_neck):
    state = seqnet_state(bn_neck)
    back, _ = convert_to_seqnet(convert_seqnet(state)[0])
    assert set(state) - set(back) == {"roi_heads.reid_loss.cq", "roi_heads.reid_loss.lut"} and set(back) <= set(state)
    for name, value in back.items():
        original = state[name]
        if name.startswith(("roi_heads.box_predictor", "roi_heads.faster_rcnn_predictor.bbox_pred")) and value.ndim:
            value, original = value[4:], original[4:]  # the background's boxes are lost, which nothing reads
        if not (name.endswith("num_batches_tracked") and "layer" in name or name == "backbone.bn1.num_batches_tracked"):
            assert torch.equal(value, original), name
        assert value.dtype == original.dtype and value.shape == original.shape


def test_either_name_of_the_rpn_convolution_is_read():
    torch.manual_seed(0)
    old, _ = convert_seqnet(seqnet_state())
    torch.manual_seed(0)
    new, _ = convert_seqnet(seqnet_state(conv="conv.0.0"))
    assert equal(old, new)


def test_torchvision_gives_backbone_and_both_heads():
    state = resnet_state()
    converted, unused = convert_torchvision_resnet50(state)
    assert unused == ["fc.bias", "fc.weight"]
    layers = {
        n for n in our_names() if n.startswith(("backbone.", "roi_heads.box_head.res5.", "roi_heads.reid_head.res5."))
    }
    assert set(converted) == layers
    assert equal(converted, convert_torchvision_resnet(state, our_names()))
    for name, theirs in (
        ("backbone.stem.conv1.norm.running_mean", "bn1.running_mean"),
        ("backbone.res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
        ("backbone.res4.5.conv3.norm.bias", "layer3.5.bn3.bias"),
        ("roi_heads.box_head.res5.0.shortcut.norm.weight", "layer4.0.downsample.1.weight"),
        ("roi_heads.reid_head.res5.2.conv2.weight", "layer4.2.conv2.weight"),
    ):
        assert torch.equal(converted[name], state[theirs])


def test_a_separate_exemplar_backbone_is_completed_from_the_main_branch():
    state = {"backbone.stem.x": torch.rand(1), "roi_heads.reid_head.res5.0.x": torch.rand(1), "other": torch.rand(1)}
    names = ["exemplar_branch.separate.backbone.stem.x", "exemplar_branch.separate.res5.0.x"]
    completed = complete_exemplar_backbone(state, [*state, *names, "exemplar_branch.separate.res5.0.y"])
    assert set(completed) == {*state, *names}
    assert [completed[n] for n in names] == [state["backbone.stem.x"], state["roi_heads.reid_head.res5.0.x"]]
    trained = {**state, names[0]: torch.rand(1)}
    assert complete_exemplar_backbone(trained, names)[names[0]] is trained[names[0]]


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name",
    ["backbone.layer3.5.bn3.bias", "rpn.head.cls_logits.weight", "roi_heads.reid_head.layer4.2.conv3.weight"],
)
def test_a_missing_weight_is_named(name):
    state = seqnet_state()
    del state[name]
    with pytest.raises(CheckpointError, match=f"not the weights of SeqNet: 1 of 3.. missing .{name}"):
        convert_seqnet(state)


def test_other_anchors_or_classes_are_refused():
    state = {**seqnet_state(), "rpn.head.cls_logits.bias": torch.rand(9)}
    with pytest.raises(CheckpointError, match="rpn.head.cls_logits.bias has 9 rows, SeqNet's has 15"):
        convert_seqnet(state)
    ours = {**convert_seqnet(seqnet_state())[0], "roi_heads.box_head.predictor.cls_score.weight": torch.rand(4, 3)}
    with pytest.raises(CheckpointError, match="cls_score.weight has 4 rows, SeqNet needs 2"):
        convert_to_seqnet(ours)


def test_what_seqnet_has_no_place_for_is_refused_and_training_state_named():
    ours, _ = convert_seqnet(seqnet_state())
    extra = {"objective.cluster_labels": torch.zeros(3), "exemplar_branch.separate.res5.0.conv1.weight": torch.zeros(1)}
    assert convert_to_seqnet({**ours, **extra})[1] == sorted(extra)
    for name in ("roi_heads.pooler.offset.0.weight", "backbone.res4.6.conv1.weight"):
        with pytest.raises(CheckpointError, match=f"no counterpart of {name}"):
            convert_to_seqnet({**ours, name: torch.zeros(1)})
    del ours["roi_heads.reid_head.embedding.rescaler.bias"]
    with pytest.raises(
        CheckpointError, match="a ResNet-50 .* 1 of 3.. missing .roi_heads.reid_head.embedding.rescaler.bias"
    ):
        convert_to_seqnet(ours)


def test_another_resnet_is_refused():
    state = resnet_state()
    with pytest.raises(CheckpointError, match="layer3.6.conv1.weight is one too many"):
        convert_torchvision_resnet50({**state, "layer3.6.conv1.weight": torch.zeros(1)})
    del state["layer2.3.bn1.weight"]
    with pytest.raises(CheckpointError, match="layer2.3.bn1.weight is missing"):
        convert_torchvision_resnet50(state)


def test_sources_are_told_apart():
    seqnet, resnet = seqnet_state(), resnet_state()
    ours, _ = convert_seqnet(seqnet)
    for state, source in ((seqnet, "seqnet"), (resnet, "torchvision"), (ours, "ours")):
        assert [is_seqnet(state), is_torchvision_resnet(state), is_person_search(state)].count(True) == 1
        assert tool.detect_source(state) == source


# ---------------------------------------------------------------------------- the tool


def saved(path: Path, data: object, **options: object) -> str:
    torch.save(data, path, **options)
    return str(path)


def loaded(path: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {"model"}
    return checkpoint["model"]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_seqnet_checkpoint(tmp_path, capsys, wrapped, zip_format):
    state = seqnet_state()
    schedule = {"milestones": Counter({16: 1}), "base_lrs": [0.003], "last_epoch": 18}
    data = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": schedule, "epoch": 17} if wrapped else state
    source = saved(tmp_path / "epoch_17.pth", data, _use_new_zipfile_serialization=zip_format)
    assert tool.main([source, str(tmp_path / "ours.pth")]) == 0
    assert equal(loaded(tmp_path / "ours.pth"), convert_seqnet(state)[0])
    printed = capsys.readouterr().err
    assert "not used: roi_heads.reid_loss.lut (4, 6)\n" in printed and "not used: roi_heads.reid_loss.cq" in printed
    assert ("not used: besides the weights, epoch, lr_scheduler, optimizer\n" in printed) == wrapped
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_17.pth", "ours.pth"]


def test_there_and_back(tmp_path):
    source = saved(tmp_path / "seqnet.pth", seqnet_state())
    ours, theirs, again = (tmp_path / f"{name}.pth" for name in ("ours", "theirs", "again"))
    assert tool.main([source, str(ours), "--from", "seqnet"]) == 0
    assert tool.main([str(ours), str(theirs), "--to-seqnet"]) == 0
    assert tool.main([str(theirs), str(again)]) == 0
    assert equal(loaded(again), loaded(ours))


def test_a_torchvision_resnet(tmp_path, capsys):
    state = resnet_state()
    source = saved(tmp_path / "resnet50.pth", state)
    assert tool.main([source, str(tmp_path / "ours.pth")]) == 0
    assert equal(loaded(tmp_path / "ours.pth"), convert_torchvision_resnet50(state)[0])
    assert "not used: fc.weight" in capsys.readouterr().err


def test_the_checkpointer_reads_what_the_tool_writes(tmp_path):
    trained = narrow_model()
    for value in trained.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    source = saved(tmp_path / "ours.pth", {"model": trained.state_dict()})
    assert tool.main([source, str(tmp_path / "theirs.pth"), "--to-seqnet"]) == 0
    assert tool.main([str(tmp_path / "theirs.pth"), str(tmp_path / "again.pth")]) == 0
    model = narrow_model()
    PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "again.pth"))
    names = our_names()
    assert equal(*({n: v for n, v in m.state_dict().items() if n in names} for m in (model, trained)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pth", "out.pth"], "nowhere.pth does not exist"),
        (["folder", "out.pth"], "folder is a folder; expected"),
        (["damaged.pth", "out.pth"], "damaged.pth cannot be read"),
        (["code.pth", "out.pth"], "code.pth cannot be read"),
        (["code.pkl", "out.pth"], "code.pkl: it contains pathlib"),
        (["number.pth", "out.pth"], "number.pth: its 'model' is a int; expected a checkpoint"),
        (["other.pth", "out.pth"], "neither SeqNet's, nor torchvision's ResNet-50, nor this project's"),
        (["other.pth", "out.pth", "--from", "seqnet"], "not the weights of SeqNet"),
        (["seqnet.pth", "out.pth", "--from", "torchvision"], "not the weights of a torchvision ResNet-50"),
        (
            ["seqnet.pth", "out.pth", "--to-seqnet"],
            "these are seqnet weights, but --to-seqnet takes this project's only",
        ),
        (["ours.pth", "out.pth"], "these are this project's weights already"),
        (["seqnet.pth", "seqnet.pth"], "is both IN and OUT"),
        (["seqnet.pth", "no/such/folder/out.pth"], "out.pth cannot be written: there is no folder no/such"),
    ],
)
def test_refusals_take_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    state = seqnet_state()
    saved(tmp_path / "seqnet.pth", state)
    saved(tmp_path / "ours.pth", {"model": convert_seqnet(state)[0]})
    saved(tmp_path / "other.pth", {"layers.0.weight": torch.rand(1)})
    saved(tmp_path / "number.pth", {"model": 3})
    saved(tmp_path / "code.pth", {"model": Path("/")})
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": Path("/")}))
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.pth").write_bytes(b"PK no archive")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert tool.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("error: ") and message in printed
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_kill_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    source = saved(tmp_path / "seqnet.pth", seqnet_state())
    target = tmp_path / "ours.pth"
    target.write_bytes(b"earlier")

    def killed(data: object, file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    assert tool.main([source, str(target)]) == 130
    assert target.read_bytes() == b"earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.pth", "seqnet.pth"]
