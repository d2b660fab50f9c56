"""What is taken out of MATLAB files, and the messages where it is not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.data import matlab
from person_search.errors import DatasetError
from scipy.io import savemat


def cell(values):
    array = np.empty((len(values), 1), object)
    array[:, 0] = values
    return array


def test_the_first_variable_of_the_list_wins(tmp_path):
    savemat(tmp_path / "a.mat", {"old": [[1]], "new": [[2]]})
    assert matlab.load_variable(tmp_path / "a.mat", ("new", "old")).item() == 2
    assert matlab.load_variable(tmp_path / "a.mat", ("newer", "old", "new")).item() == 1


def test_a_missing_variable_is_named_with_what_there_is(tmp_path):
    savemat(tmp_path / "a.mat", {"old": [[1]]})
    with pytest.raises(DatasetError, match=r"a.mat: holds \['old'\], expected box_new or anno_file"):
        matlab.load_variable(tmp_path / "a.mat", ("box_new", "anno_file"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="a.mat: the file is missing"):
        matlab.load_variable(tmp_path / "a.mat", ("x",))


@pytest.mark.parametrize("keep", [0, 10, 130, 0.5, 0.9])
def test_damaged_files_are_named(tmp_path, keep):
    file = tmp_path / "a.mat"
    savemat(file, {"x": np.random.default_rng(0).random((40, 5))}, do_compression=True)
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(DatasetError, match="a.mat: (not a readable MATLAB file|holds no variable)"):
        matlab.load_variable(file, ("x",))


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), min_size=1))
def test_texts_of_a_cell_come_back(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("cell") / "a.mat"
    savemat(file, {"names": cell(values)})
    assert matlab.texts(file, "names") == values


def test_a_cell_that_is_no_text_is_named(tmp_path):
    savemat(tmp_path / "a.mat", {"names": cell(["fine", 3.0])})
    with pytest.raises(DatasetError, match=r"a.mat: names\{2\}: expected one text, found float64"):
        matlab.texts(tmp_path / "a.mat", "names")


def test_boxes_of_small_integers_do_not_wrap():
    x, y, w, h = matlab.box(np.array([[250, 1, 250, 2]], np.uint8))
    assert (x + w, y + h) == (500.0, 3.0)
    assert matlab.box(np.zeros((0, 0), np.uint16)) is None


@pytest.mark.parametrize("value", [np.zeros((1, 3)), "text", np.array([[1j, 1, 1, 1]])])
def test_what_is_no_box_is_refused(value):
    with pytest.raises(ValueError, match="expected a box of 4 numbers"):
        matlab.box(value)


def test_what_is_no_struct_is_refused():
    assert matlab.structs(np.zeros((0, 0))) == []
    with pytest.raises(ValueError, match="expected a struct array, found float64"):
        matlab.structs(np.ones((1, 2)))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_was_cut_off_anywhere_is_told_without_reading_it(tmp_path, compressed):
    file = tmp_path / "a.mat"
    savemat(file, {"x": np.arange(40.0), "y": np.arange(7)}, do_compression=compressed)
    matlab.check_complete(file)
    whole = file.read_bytes()
    ends = {128 + 8 + int.from_bytes(whole[132:136], "little")}  # a file of its first variable alone is a whole file
    for length in range(0, len(whole), 5):
        if length not in ends:
            file.write_bytes(whole[:length])
            with pytest.raises(DatasetError, match=rf"a.mat: is truncated, it has {length} of at least \d+ bytes"):
                matlab.check_complete(file)


def test_files_of_other_versions_are_left_to_the_reader(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file, HDF5")
    matlab.check_complete(tmp_path / "a.mat")
