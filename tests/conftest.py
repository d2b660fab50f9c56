"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from person_search import add_ssl_config
from person_search.data import records
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and the GPU where there is one."""
    return request.param


@pytest.fixture(scope="session", params=[pytest.param("cuda", marks=NO_GPU)])
def gpu(request: pytest.FixtureRequest) -> str:
    """The GPU; a test that asks for it is skipped where there is none."""
    return request.param


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real frames, real annotations and golden files that lies beside some checkouts."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of real data and golden files is not beside this checkout")
    return folder


@pytest.fixture
def matmul() -> Iterator[Any]:
    """PyTorch's switches for matrix products on a GPU, which are set back afterwards."""
    switches = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(switches, "fp32_precision") else "allow_tf32"
    before = getattr(switches, name)
    yield switches
    switches.allow_tf32 = False  # PyTorch's default; the newer switch does not set the older one back
    setattr(switches, name, before)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once in a run is said once in each test."""
    monkeypatch.setattr(records, "_said", set())


def _config(*options: object) -> CfgNode:
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "projects" / "SSL" / "configs" / "synthetic.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


@pytest.fixture
def narrow_cfg() -> CfgNode:
    """A tiny model of the real architecture: a ResNet-50 of an eighth of the width, 16-dimensional embeddings."""
    return _config(
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.REID_HEAD.EMBEDDING_DIM", 16),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4, "SSL.EXEMPLAR.SCALES", ((24, 12), (48, 24))),
        *("SSL.MEMORY.CALIBRATION_FRAMES", 2, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.02),
    )


@pytest.fixture
def shallow_cfg(narrow_cfg: CfgNode) -> CfgNode:
    """A fifth of the layers of `narrow_cfg`, for tests that run a whole training or evaluation: a ResNet-10."""
    narrow_cfg.merge_from_list([
        *("MODEL.BACKBONE.NAME", "build_slim_resnet_backbone", "MODEL.RESNETS.DEPTH", 10),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    ])  # fmt: skip
    return narrow_cfg


@pytest.fixture
def full_width_cfg() -> CfgNode:
    """The paper's ResNet-50 on the CPU."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "projects" / "SSL" / "configs" / "prw.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu"])
    return cfg


@torch.no_grad()
def _balance(model: nn.Module, image: torch.Tensor) -> None:
    """Moves the box head's bias so that half of the proposals of an image (3, H, W) score above 0.5."""
    model.eval()
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    ((proposals,), _) = model.proposal_generator(images, features, None)
    heads = model.roi_heads
    logits, _ = heads.box_head(heads.pool(features[heads.in_feature], [proposals.proposal_boxes]))
    heads.box_head.predictor.cls_score.bias[0] -= (logits[:, 0] - logits[:, 1]).median()


@pytest.fixture(scope="session")
def balance() -> Callable[[nn.Module, torch.Tensor], None]:
    """Makes a random network detect some of what it sees, whatever its settings."""
    return _balance
