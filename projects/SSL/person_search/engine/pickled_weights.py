"""Weights in Detectron2's and Caffe2's pickle files, read without running what a file may ask Python to run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# numpy moved its internals in version 2; files name either place.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = np.zeros(0).__reduce__()[0]
    _ALLOWED[_module, "scalar"] = np.float32(0).__reduce__()[0]


class _ArraysAlone(pickle.Unpickler):
    """Unpickler of numbers, text, lists, mappings and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_pickled_weights(path: str) -> dict[str, Any]:
    """Content of a .pkl file as Detectron2's checkpointer takes it: "model", "__author__" and maybe more.

    Args:
        path: A file of Detectron2's model zoo, or one of Caffe2 (blobs alone or below "blobs").

    Raises:
        OSError: The file cannot be read.
        pickle.UnpicklingError: It is damaged, or holds more than arrays and plain values.
    """
    try:
        with Path(path).open("rb") as file:
            content = _ArraysAlone(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise pickle.UnpicklingError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it is a {type(content).__name__}")
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    model = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
