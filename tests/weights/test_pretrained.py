"""Pretrained networks from every place and in every layout that MODEL.WEIGHTS understands, and what is refused."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from person_search.engine import PersonSearchCheckpointer
from person_search.errors import CheckpointError
from person_search.weights.files import read_weights
from person_search.weights.layouts import timm_names
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

LITE, CONVNEXT, SWIN = "tf_efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224"
LUPERSON = ([89.896, 79.2, 80.073], [63.872, 64.305, 63.839])
HALF = ([127.5] * 3, [127.5] * 3)


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """torchvision's ResNet-18 with values that tell its weights apart."""
    torch.manual_seed(1)
    return {
        n: torch.randn_like(v) if v.is_floating_point() else v
        for n, v in torchvision.models.resnet18().state_dict().items()
    }


def network_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = timm.create_model(name, pretrained=False).state_dict()
    return {n: torch.randn_like(v) if v.is_floating_point() else v for n, v in state.items()}


def timm_model(
    cfg: CfgNode, name: str = "resnet18", pixels: tuple[list[float], list[float]] | None = None
) -> nn.Module:
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", name
    if pixels:
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = pixels
    return build_model(cfg)


def detectron_model(cfg: CfgNode, depth: int = 50) -> nn.Module:
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.BACKBONE.NAME = "build_slim_resnet_backbone"
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    return build_model(cfg)


def start(model: nn.Module, path: Path | str) -> dict[str, Tensor]:
    PersonSearchCheckpointer(model).resume_or_load(str(path), resume=False)
    return model.state_dict()


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def assert_holds(model: nn.Module, network: dict[str, Tensor], trunk: str, last: str) -> None:
    """Trunk and both last stages have a weight of the network each, and nothing of them is left out."""
    state = model.state_dict()
    assert torch.equal(state[f"backbone.{trunk}"], network[trunk])
    stages = {name for name in state if name.endswith(last) and name.startswith("roi_heads.")}
    assert len(stages) == 2 and all(torch.equal(state[name], network[last]) for name in stages)


# ---------------------------------------------------------------------- places and containers


def test_the_package_on_the_index_knows_what_is_in_a_photo():
    """The names and the order of its weights are right only if the whole network still sees a palace."""
    network = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    state = read_weights("package://efficientnet-lite2").state
    network.load_state_dict(timm_names(state, "tf_efficientnet_lite2"), strict=True)
    photo = torch.from_numpy(np.array(load_sample_images().images[0])).permute(2, 0, 1)[None].float()
    square = photo[..., :, 106:533]
    pixels = (torch.nn.functional.interpolate(square, size=(260, 260), mode="bilinear", antialias=True) - 127) / 128
    with torch.no_grad():
        assert network(pixels).argmax().item() == 698  # ImageNet's palace


def test_the_package_starts_trunk_and_both_heads_and_one_line_says_so(narrow_cfg, caplog):
    model = timm_model(narrow_cfg, "tf_efficientnet_lite2", ([127.0] * 3, [128.0] * 3))
    with caplog.at_level(logging.INFO):
        start(model, "package://efficientnet-lite2")
    (line,) = [r.getMessage() for r in caplog.records if "MODEL.WEIGHTS" in r.getMessage()]
    assert re.search(
        r"loaded: 225 into backbone, 90 into \S+, 90 into \S+; left over: .*; missing, so from scratch: ", line
    )
    assert "proposal_generator.rpn_head" in line and "backbone" not in line.partition("from scratch")[2]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["efficientnet-lite4", "resnet50"])
def test_a_package_that_is_not_there_says_what_to_install(narrow_cfg, name):
    expected = "efficientnet-lite4-pytorch-model is not installed" if "lite4" in name else "expected package://"
    with pytest.raises(CheckpointError, match=expected):
        start(timm_model(narrow_cfg, LITE), f"package://{name}")


def test_timm_without_a_network_says_what_to_fetch(narrow_cfg, monkeypatch):
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(CheckpointError, match="no route to host.*model.safetensors"):
        read_weights("timm://resnet18.a1_in1k")
    with pytest.raises(CheckpointError, match="has no weights of that name"):
        read_weights("timm://resnet18.nosuch")


def test_timm_from_its_hub_brings_its_pixels(narrow_cfg, monkeypatch, resnet):
    made = timm.create_model

    def from_hub(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network = made(name, pretrained=False, **options)
        if pretrained:
            network.load_state_dict(resnet)
        return network

    monkeypatch.setattr(timm, "create_model", from_hub)
    assert_holds_resnet(timm_model(narrow_cfg), "timm://resnet18.a1_in1k", resnet)
    with pytest.raises(CheckpointError, match=r"PIXEL_MEAN \[123.675, 116.28, 103.53\].*set them"):
        start(timm_model(narrow_cfg, pixels=HALF), "timm://resnet18.a1_in1k")


def assert_holds_resnet(model: nn.Module, path: Path | str, resnet: dict[str, Tensor]) -> None:
    start(model, path)
    assert_holds(model, resnet, "layer3.1.conv2.weight", "layer4.0.downsample.1.running_var")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": under("module.", s), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {
            "state_dict": {
                **under("module.encoder_q.", s),
                **under("module.encoder_k.", s),
                "module.queue": s["fc.bias"],
            }
        },
        lambda s: under("encoder_q.", s),
        lambda s: {
            "student": {},
            "teacher": {**under("module.backbone.", s), "module.head.mlp.0.weight": s["fc.weight"]},
        },
        lambda s: {"model": under("base.", s), "classifier.weight": s["fc.weight"]},
    ],
    ids=["bare", "model", "namespace", "moco", "encoder_q", "CION", "base"],
)
def test_containers_and_prefixes(narrow_cfg, tmp_path, resnet, wrap):
    assert_holds_resnet(timm_model(narrow_cfg), saved(wrap(resnet), tmp_path / "weights.pth"), resnet)


def test_safetensors(narrow_cfg, tmp_path, resnet):
    save_file({n: v.contiguous() for n, v in resnet.items()}, tmp_path / "model.safetensors")
    assert_holds_resnet(timm_model(narrow_cfg), tmp_path / "model.safetensors", resnet)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="broken.safetensors: it is damaged"):
        start(timm_model(narrow_cfg), tmp_path / "broken.safetensors")


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize("file_name", ["lup_moco_r50.pth", "lupws_r50.pth"])
def test_luperson_has_pixels_of_its_own(narrow_cfg, tmp_path, resnet, file_name):
    path = saved(under("encoder_q.", resnet), tmp_path / file_name)
    assert_holds_resnet(timm_model(narrow_cfg, pixels=LUPERSON), path, resnet)
    with pytest.raises(CheckpointError, match=r"LUPerson weights expect INPUT.FORMAT RGB, MODEL.PIXEL_MEAN \[89.896"):
        start(timm_model(narrow_cfg), path)


def test_cion_expects_the_pixels_of_imagenet(narrow_cfg, tmp_path, resnet):
    path = saved({"teacher": under("module.backbone.", resnet)}, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"CION weights expect .*123.675"):
        start(timm_model(narrow_cfg, pixels=HALF), path)


def test_convnext_as_its_authors_name_it(narrow_cfg, tmp_path):
    ours = network_of(CONVNEXT)
    theirs = {}
    for name, value in ours.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name).replace(".blocks.", ".")
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        theirs[re.sub(r"^head\.norm", "norm", name).replace("head.fc", "head")] = value
    model = timm_model(narrow_cfg, CONVNEXT)
    start(model, saved({"teacher": under("backbone.", theirs)}, tmp_path / "convnext.pth"))
    assert_holds(model, ours, "stages.2.blocks.1.mlp.fc1.weight", "stages.3.downsample.1.weight")


def to_mmcv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and orders of a Swin in mmcv: each stage ends in its merging, whose input unfolds channel by channel."""
    renamed = {}
    for name, value in state.items():
        if "relative_position_index" in name or name.startswith("head."):
            continue
        merging = re.match(r"layers\.(\d)\.downsample\.(.*)", name)
        if merging:
            name = f"layers.{int(merging[1]) - 1}.downsample.{merging[2]}"
            parts = value.reshape(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]  # patches row by row
            value = parts.transpose(-1, -2).reshape(value.shape)
        name = name.replace("patch_embed.proj", "patch_embed.projection").replace("attn.", "attn.w_msa.")
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        renamed[
            re.sub(r"^norm\.", "norm3.", name).replace("layers.", "stages.", 1)
            if "layers." in name[:7]
            else re.sub(r"^norm\.", "norm3.", name)
        ] = value
    return renamed


def test_the_merging_of_patches_is_that_of_mmcv():
    """Against what mmcv does: unfold, normalize, reduce."""
    ours = {n: v for n, v in network_of(SWIN).items()}
    theirs = to_mmcv(ours)
    merging = timm.create_model(SWIN, pretrained=False).layers[1].downsample
    merging.load_state_dict(
        {n.removeprefix("layers.1.downsample."): v for n, v in ours.items() if "layers.1.downsample" in n}
    )
    maps = torch.randn(1, 96, 4, 6)
    unfolded = torch.nn.functional.unfold(maps, 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(
        unfolded, (384,), theirs["stages.0.downsample.norm.weight"], theirs["stages.0.downsample.norm.bias"]
    )
    expected = normed @ theirs["stages.0.downsample.reduction.weight"].T
    torch.testing.assert_close(merging(maps.permute(0, 2, 3, 1)).flatten(1, 2), expected, rtol=1e-4, atol=1e-3)


def test_solider_in_the_names_of_mmcv(narrow_cfg, tmp_path):
    ours = network_of(SWIN)
    theirs = {**under("backbone.", to_mmcv(ours)), "backbone.semantic_embed_w.0.weight": torch.zeros(192, 2)}
    for key, content in (("teacher", {"teacher": theirs, "epoch": 1}), ("converted", theirs)):
        path = saved(content, tmp_path / f"{key}.pth")
        model = timm_model(narrow_cfg, SWIN, HALF)
        start(model, path)
        assert_holds(
            model, ours, "layers.2.blocks.5.attn.relative_position_bias_table", "layers.3.downsample.reduction.weight"
        )
        assert torch.equal(
            model.state_dict()["backbone.layers.1.downsample.norm.bias"], ours["layers.1.downsample.norm.bias"]
        )
    with pytest.raises(CheckpointError, match=r"SOLIDER weights expect .*127.5"):
        start(timm_model(narrow_cfg, SWIN), path)


# ---------------------------------------------------------------------- Detectron2's zoo


def zoo_names(resnet: dict[str, Tensor]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, value in resnet.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        renamed[name if name.startswith("res") else f"stem.{name}"] = value.numpy()
    return renamed


@pytest.mark.parametrize("protocol", [2, pickle.DEFAULT_PROTOCOL, 5])
def test_a_pickle_of_the_zoo_reaches_backbone_and_both_heads(narrow_cfg, tmp_path, resnet, protocol):
    content = {"model": zoo_names(resnet), "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content, protocol))
    model = detectron_model(narrow_cfg, 18)
    state = start(model, tmp_path / "R-18.pkl")
    assert torch.equal(state["backbone.res4.1.conv2.norm.running_mean"], resnet["layer3.1.bn2.running_mean"])
    stages = [n for n in state if n.endswith("res5.0.shortcut.weight") or n.endswith("stage.0.shortcut.weight")]
    assert len(stages) == 2 and all(torch.equal(state[n], resnet["layer4.0.downsample.0.weight"]) for n in stages)


def test_torchvisions_names_reach_detectrons_resnet(narrow_cfg, tmp_path, resnet):
    state = start(detectron_model(narrow_cfg, 18), saved(resnet, tmp_path / "resnet18.pth"))
    assert torch.equal(state["backbone.stem.conv1.weight"], resnet["conv1.weight"])


def test_a_detector_of_the_zoo_expects_caffes_pixels(narrow_cfg, tmp_path, resnet):
    zoo = zoo_names(resnet)
    content = {f"{'roi_heads' if n.startswith('res5') else 'backbone'}.{n}": v for n, v in zoo.items()}
    content["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": content, "__author__": "Detectron2 Model Zoo"}))
    with pytest.raises(CheckpointError, match="expect INPUT.FORMAT BGR"):
        start(detectron_model(narrow_cfg, 18), tmp_path / "model_final.pkl")


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
def test_a_hostile_file_runs_nothing(narrow_cfg, tmp_path, resnet, suffix):
    mark, path = tmp_path / "mark", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": _Hostile(mark)}, "__author__": "torchvision"}))
    with pytest.raises(CheckpointError, match="code"):
        start(detectron_model(narrow_cfg, 18), path)
    saved({"model": {**resnet, "x": _Hostile(mark)}}, tmp_path / "zip.pth")
    with pytest.raises(CheckpointError, match="code"):
        start(detectron_model(narrow_cfg, 18), tmp_path / "zip.pth")
    assert not mark.exists()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("drop", "part"), [("layer2.0.conv1.weight", "backbone"), ("layer4.1.bn2.running_mean", "roi_heads")]
)
def test_a_part_that_would_start_random_is_refused(narrow_cfg, tmp_path, resnet, drop, part):
    path = saved({n: v for n, v in resnet.items() if n != drop}, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=rf"lack 1 of the \d+ of {part}.*{re.escape(drop)}.*would be random"):
        start(timm_model(narrow_cfg), path)


@pytest.mark.parametrize(
    ("freeze_at", "frozen_norm", "message"),
    [(0, True, "15 layers of frozen"), (1, False, "1 frozen weights and 1 layers"), (0, False, "")],
)
def test_a_frozen_random_backbone_is_refused(narrow_cfg, freeze_at, frozen_norm, message):
    cfg = narrow_cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.TIMM.FROZEN_NORM = freeze_at, frozen_norm
    model = timm_model(cfg)
    if not message:
        start(model, "")
        return
    with pytest.raises(CheckpointError, match=f'MODEL.WEIGHTS is "", but the backbone has .*{message}'):
        start(model, "")


def test_weights_of_a_model_here_that_lack_a_last_stage_are_refused(narrow_cfg, tmp_path):
    model = timm_model(narrow_cfg)
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("layer4.1.conv1.weight")}
    with pytest.raises(CheckpointError, match="2 of .* weights of trunk and last stages are missing"):
        start(model, saved({"model": state}, tmp_path / "model.pth"))


def test_another_backbone_is_refused(narrow_cfg, tmp_path, resnet):
    path = saved(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="are of another backbone"):
        start(timm_model(narrow_cfg), path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv1.weight", "layer1.0.bn1.IN.weight"], "of an IBN network"),
        (["visual.conv1.weight", "visual.attnpool.q_proj.weight"], "of a CLIP-like network"),
        (["roi_heads.reid_head.layer4.0.conv1.weight"], "they are SeqNet's"),
        (["something.else"], "none of its weights has a name of this model"),
    ],
)
def test_variants_are_refused_by_name(narrow_cfg, tmp_path, names, message):
    path = saved({name: torch.zeros(2) for name in names}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message) as refusal:
        start(timm_model(narrow_cfg), path)
    assert "\n" not in str(refusal.value)


def test_a_separate_exemplar_backbone_starts_from_the_same_weights(narrow_cfg, tmp_path, resnet):
    cfg = narrow_cfg.clone()
    cfg.SSL.EXEMPLAR.SHARED_BACKBONE = False
    model = timm_model(cfg)
    state = start(model, saved(resnet, tmp_path / "resnet18.pth"))
    copies = [n for n in state if n.endswith(("layer3.0.conv1.weight", "layer4.0.conv1.weight"))]
    assert len(copies) == 5
    assert all(torch.equal(state[n], resnet[re.search(r"layer\d.*", n)[0]]) for n in copies)


def test_a_checkpoint_of_this_project_comes_back_whole(narrow_cfg, tmp_path):
    torch.manual_seed(0)
    model, other = timm_model(narrow_cfg), timm_model(narrow_cfg)
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    PersonSearchCheckpointer(other).load_for_inference(str(tmp_path / "model.pth"))
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in ours.items() if not n.startswith("objective."))
