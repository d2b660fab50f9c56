"""Checkpoints: whole files, foreign weights, and refusals in one line."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from person_search.engine import PersonSearchCheckpointer
from person_search.errors import CheckpointError
from person_search.weights.files import read_weights


@pytest.fixture
def model(narrow_cfg: CfgNode):
    return build_model(narrow_cfg)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "model_0.pth: No space.*--resume"),
        (
            RuntimeError("[enforce fail at inline_container.cc]"),
            CheckpointError,
            "model_0.pth: .enforce fail.*--resume",
        ),
    ],
)
def test_a_write_that_fails_leaves_the_previous_checkpoint(model, tmp_path, monkeypatch, error, raised, message):
    checkpointer = PersonSearchCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0")
    before = (tmp_path / "model_0.pth").read_bytes()

    def stop(data, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(raised, match=message):
        checkpointer.save("model_0")
    assert (tmp_path / "model_0.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0.pth")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0.pth"]


def test_the_tag_follows_a_complete_file(model, tmp_path, monkeypatch):
    checkpointer = PersonSearchCheckpointer(model, str(tmp_path))
    order = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(os.path.basename(b)), real(a, b)))
    checkpointer.save("model_1")
    assert order == ["model_1.pth", "last_checkpoint"]


def test_inference_ignores_banks_of_another_training_set(model, tmp_path, caplog):
    model.objective.allocate(torch.tensor([0, 0, 1]))
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    model.objective.allocate(torch.zeros(0, dtype=torch.int64))
    PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "model.pth"))
    assert model.objective.size == 0
    assert not [r for r in caplog.records if r.levelname == "WARNING"], "what is left out on purpose is no warning"


def test_resuming_with_banks_of_another_size_is_refused(model, tmp_path):
    model.objective.allocate(torch.tensor([0, 0, 1]))
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    model.objective.allocate(torch.tensor([0, 1]))
    with pytest.raises(CheckpointError, match="has 3 rows, the training set has 2 annotated persons"):
        PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)


def test_fine_tuning_leaves_the_banks_alone(model, tmp_path):
    model.objective.allocate(torch.tensor([0, 0, 1]))
    model.objective.instance_bank.features.fill_(0.5)
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    model.objective.allocate(torch.tensor([0, 1]))
    PersonSearchCheckpointer(model).resume_or_load(str(tmp_path / "model.pth"), resume=False)
    assert float(model.objective.instance_bank.features.abs().sum()) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist|do not exist"),
        (b"", "cannot be read|damaged"),
        (b"not a checkpoint", "damaged|cannot be read"),
    ],
)
def test_missing_and_damaged_weights(model, tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        PersonSearchCheckpointer(model).load_for_inference(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_checkpoint(model, tmp_path):
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    path = tmp_path / "model.pth"
    path.write_bytes(path.read_bytes()[: 2 * path.stat().st_size // 3])
    with pytest.raises(CheckpointError, match="model.pth"):
        PersonSearchCheckpointer(model).load_for_inference(str(path))


def test_evaluation_refuses_nothing_a_backbone_alone_and_another_width(model, narrow_cfg, tmp_path):
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        PersonSearchCheckpointer(model).load_for_inference("")
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="is not a trained person search model"):
        PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "backbone.pth"))
    PersonSearchCheckpointer(model, str(tmp_path)).save("narrow")
    wider = narrow_cfg.clone()
    wider.defrost()
    wider.MODEL.REID_HEAD.EMBEDDING_DIM = 32
    with pytest.raises(CheckpointError, match="of another shape"):
        PersonSearchCheckpointer(build_model(wider)).load_for_inference(str(tmp_path / "narrow.pth"))
    torch.save({"unrelated": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="none of its weights"):
        PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "other.pth"))


def test_weights_that_cannot_be_downloaded_say_what_to_fetch(model, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    checkpointer = PersonSearchCheckpointer(model)
    with pytest.raises(CheckpointError, match="could not download .*resnet50.*Download that file"):
        checkpointer.resume_or_load("torchvision://ResNet50_Weights.IMAGENET1K_V1", resume=False)
    with pytest.raises(CheckpointError, match="no weights of that name"):
        checkpointer.resume_or_load("torchvision://ResNet50_Weights.NEVER", resume=False)


def test_a_torchvision_resnet_reaches_backbone_and_both_heads(full_width_cfg: CfgNode, tmp_path):
    source = torchvision.models.resnet50(weights=None).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    model = build_model(full_width_cfg).eval()
    PersonSearchCheckpointer(model).resume_or_load(str(tmp_path / "resnet50.pth"), resume=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = source.maxpool(source.relu(source.bn1(source.conv1(image))))
        expected4 = source.layer3(source.layer2(source.layer1(x)))
        expected5 = source.layer4(expected4)
        got4 = model.backbone(image)["res4"]
        torch.testing.assert_close(got4, expected4, rtol=1e-3, atol=1e-3 * float(expected4.abs().max()))
        for res5 in (model.roi_heads.box_head.res5, model.roi_heads.reid_head.res5):
            torch.testing.assert_close(res5(got4), expected5, rtol=1e-3, atol=1e-3 * float(expected5.abs().max()))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": None}, {"model": [1]}])
def test_what_is_no_mapping_of_tensors_is_refused(model, tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="expected a checkpoint: a mapping of names to tensors") as caught:
        PersonSearchCheckpointer(model).load_for_inference(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"garbage", b"", b"\x80\x04N."])
def test_a_damaged_pickle_is_refused(model, tmp_path, content):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights.pkl cannot be read .*expected a checkpoint"):
        PersonSearchCheckpointer(model).load_for_inference(str(path))


class _State:
    def state_dict(self) -> dict:
        return {"iteration": 3}

    def load_state_dict(self, state: dict) -> None: ...


def test_resuming_from_weights_alone_is_refused(model, tmp_path):
    PersonSearchCheckpointer(model, str(tmp_path)).save("weights")
    with pytest.raises(CheckpointError, match=r"weights.pth: it has weights but no state of a training \(trainer\)"):
        PersonSearchCheckpointer(model, str(tmp_path), trainer=_State()).resume_or_load("", resume=True)
    PersonSearchCheckpointer(model, trainer=_State()).resume_or_load(str(tmp_path / "weights.pth"), resume=False)


@pytest.mark.parametrize("tag", ["gone.pth", ""])
def test_a_last_checkpoint_that_is_gone_names_its_tag(model, tmp_path, tag):
    (tmp_path / "last_checkpoint").write_text(tag)
    with pytest.raises(CheckpointError, match="last_checkpoint names .*which does not exist"):
        PersonSearchCheckpointer(model, str(tmp_path), trainer=_State()).resume_or_load("", resume=True)


def test_training_from_another_backbone_is_refused_but_not_from_another_head(model, narrow_cfg, tmp_path):
    PersonSearchCheckpointer(model, str(tmp_path)).save("model")
    narrow_cfg.MODEL.REID_HEAD.EMBEDDING_DIM = narrow_cfg.MODEL.REID_HEAD.EMBEDDING_DIM * 2
    other_head = PersonSearchCheckpointer(build_model(narrow_cfg))
    other_head.resume_or_load(str(tmp_path / "model.pth"), resume=False)
    learnt, taken = model.state_dict(), other_head.model.state_dict()
    assert all(torch.equal(value, taken[name]) for name, value in learnt.items() if name.startswith("backbone."))
    narrow_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS *= 2
    other = PersonSearchCheckpointer(build_model(narrow_cfg))
    with pytest.raises(
        CheckpointError, match=r"model.pth are of another backbone: backbone.* is \(\d+.*with this config"
    ):
        other.resume_or_load(str(tmp_path / "model.pth"), resume=False)


@pytest.mark.parametrize("url", ["https://nowhere.invalid/r50.pkl", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"])
def test_other_weights_that_cannot_be_downloaded_say_what_to_do(model, monkeypatch, url, tmp_path):
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=f"MODEL.WEIGHTS {url}: could not be downloaded .*no network.*give its path"
    ):
        PersonSearchCheckpointer(model).load(url)


def test_a_checkpoint_carries_the_configuration_of_its_model(model, narrow_cfg, tmp_path):
    PersonSearchCheckpointer(model, str(tmp_path), narrow_cfg).save("model")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert CfgNode.load_cfg(content["config"]) == CfgNode.load_cfg(narrow_cfg.dump())
    PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "model.pth"))


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_are_read_but_run_nothing(model, tmp_path):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, content in {"zoo": {"model": state, "__author__": "someone"}, "caffe2": {"blobs": state}}.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
        read = read_weights(str(tmp_path / f"{name}.pkl")).state
        assert read.keys() == state.keys() and all((read[key].numpy() == state[key]).all() for key in state)
    PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "zoo.pkl"))
    marker = tmp_path / "ran"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": state, "__author__": Touch(marker)}))
    with pytest.raises(CheckpointError, match=r"evil\.pkl"):
        PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "evil.pkl"))
    assert not marker.exists()


OLD_NAMES = {
    "roi_heads.box_head.res5.": "roi_heads.first_res5.",
    "roi_heads.box_head.predictor.": "roi_heads.first_predictor.",
    "roi_heads.reid_head.res5.": "roi_heads.second_res5.",
    "roi_heads.reid_head.regressor.": "roi_heads.second_regressor.",
    "roi_heads.reid_head.embedding.": "roi_heads.embedding.",
}


def under_old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        new = next((new for new in OLD_NAMES if name.startswith(new)), None)
        renamed[name if new is None else OLD_NAMES[new] + name.removeprefix(new)] = value
    return renamed


def test_checkpoints_of_earlier_versions_load(model, narrow_cfg, tmp_path):
    old = under_old_names(model.state_dict())
    assert len(old) == len(model.state_dict()) and not any("box_head" in n or "reid_head" in n for n in old)
    torch.save({"model": old}, tmp_path / "old.pth")
    torch.manual_seed(1)
    fresh = build_model(narrow_cfg)
    PersonSearchCheckpointer(fresh).load_for_inference(str(tmp_path / "old.pth"))
    expected = model.state_dict()
    assert [k for k, v in fresh.state_dict().items() if not torch.equal(v, expected[k])] == []


def test_a_checkpoint_of_an_earlier_version_resumes(model, narrow_cfg, tmp_path):
    model.objective.allocate(torch.tensor([0, 0, 1]))
    model.objective.instance_bank.features.normal_()
    torch.save({"model": under_old_names(model.state_dict()), "iteration": 3}, tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    torch.manual_seed(1)
    fresh = build_model(narrow_cfg)
    fresh.objective.allocate(torch.tensor([0, 0, 1]))
    rest = PersonSearchCheckpointer(fresh, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    expected = model.state_dict()
    assert [k for k, v in fresh.state_dict().items() if not torch.equal(v, expected[k])] == []


def test_parameters_keep_the_places_by_which_an_optimizer_s_state_names_them(model):
    heads = [name.split(".")[2] for name, _ in model.roi_heads.named_parameters(prefix="roi_heads")]
    groups = [name for i, name in enumerate(heads) if i == 0 or name != heads[i - 1]]
    assert groups == ["res5", "regressor", "embedding", "res5", "predictor"]
