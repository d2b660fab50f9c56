"""The one way of writing files, whole or not at all, and of reading archives of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from person_search.errors import CheckpointError, DatasetError
from person_search.io import read_arrays, replacing, write_arrays


@pytest.mark.parametrize("durable", [False, True])
def test_a_block_that_ends_well_puts_the_file_in_its_place(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("old", "new"):
        with replacing(path, durable=durable) as temporary:
            temporary.write_text(content)
        assert path.read_text() == content
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as temporary:
        temporary.write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [DatasetError, CheckpointError])
def test_what_cannot_be_written_is_named_by_the_error_asked_for(tmp_path: Path, error: type[Exception]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match="cannot write .*file/results.json: File exists"):
        with replacing(tmp_path / "file" / "results.json", error=error) as temporary:
            temporary.write_text("")


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"number": np.array(3), "names": np.array(["a", "é"]), "none": np.zeros((0, 4), np.float32)}
    write_arrays(tmp_path / "new" / "a.npz", arrays)
    found = read_arrays(tmp_path / "new" / "a.npz", "a store")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_arrays(tmp_path / "a.npz", {"objects": np.array([{}])})
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "a.npz", objects=np.array([{}]))
    with pytest.raises(DatasetError, match=r"a.npz is not a store: expected an undamaged npz archive .*\(Object"):
        read_arrays(tmp_path / "a.npz", "a store")
