"""The cache notices every change, survives damage and is written in one step."""

from __future__ import annotations

import os

import numpy as np
import pytest
from person_search.data.cache import CACHE_FOLDER, cached_arrays, fingerprint


class Reader:
    """Reads what the file says and counts how often."""

    def __init__(self, root):
        self.root, self.calls = root, 0

    def build(self):
        self.calls += 1
        return {"letters": np.array(list((self.root / "source.txt").read_text())), "none": np.zeros((0, 4))}

    def get(self, version=1, sources=("source.txt", "folder")):
        paths = [self.root / name for name in sources]
        return "".join(cached_arrays("table", self.root, paths, version, self.build)["letters"])


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "source.txt").write_text("abc")
    (root / "folder" / "one").write_text("1")
    return Reader(root)


def test_second_reading_comes_from_disk_unchanged(reader):
    first = cached_arrays("table", reader.root, [reader.root / "source.txt"], 1, reader.build)
    second = cached_arrays("table", reader.root, [reader.root / "source.txt"], 1, reader.build)
    assert reader.calls == 1
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name])
    assert [f.name for f in (reader.root / CACHE_FOLDER).iterdir()] == ["table.npz"]


def test_changed_size_is_noticed(reader):
    assert reader.get() == "abc"
    (reader.root / "source.txt").write_text("abcd")
    assert reader.get() == "abcd"


def test_changed_time_is_noticed(reader):
    assert reader.get() == "abc"
    (reader.root / "source.txt").write_text("xyz")
    os.utime(reader.root / "source.txt", (1, 1))
    assert reader.get() == "xyz"


@pytest.mark.parametrize("change", ["add", "remove", "rename", "grow"])
def test_changes_inside_a_folder_are_noticed(reader, change):
    reader.get()
    one = reader.root / "folder" / "one"
    status = one.stat()
    if change == "add":
        (reader.root / "folder" / "two").touch()
    elif change == "remove":
        one.unlink()
    elif change == "rename":
        one.rename(one.with_name("uno"))
    else:
        one.write_text("11")
        os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    reader.get()
    assert reader.calls == 2


def test_another_version_of_the_reader_reads_again(reader):
    reader.get()
    reader.get(version=2)
    reader.get(version=2)
    assert reader.calls == 2


def test_a_source_that_appears_is_noticed(reader):
    sources = ("source.txt", "later.txt")
    reader.get(sources=sources)
    reader.get(sources=sources)
    (reader.root / "later.txt").touch()
    reader.get(sources=sources)
    assert reader.calls == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", "half", "flipped"])
def test_a_damaged_cache_is_ignored_and_rewritten(reader, damage):
    reader.get()
    file = reader.root / CACHE_FOLDER / "table.npz"
    content = file.read_bytes()
    if damage == "half":
        damage = content[: len(content) // 2]
    elif damage == "flipped":
        place = content.index("abc".encode("utf-32-le"))
        damage = content[:place] + b"q" + content[place + 1 :]
    file.write_bytes(damage)
    assert reader.get() == "abc"
    assert reader.get() == "abc"
    assert reader.calls == 2


def test_the_users_cache_serves_where_the_root_cannot_be_written(reader, tmp_path):
    (reader.root / CACHE_FOLDER).touch()  # a file where the folder should be cannot be written, not even by root
    assert reader.get() == reader.get() == "abc"
    assert reader.calls == 1
    assert len(list((tmp_path / "user" / "person_search").glob("*/table.npz"))) == 1


def test_two_roots_do_not_share_the_users_cache(reader, tmp_path):
    other = Reader(tmp_path / "other")
    other.root.mkdir()
    (other.root / "source.txt").write_text("xyz")
    for root in (reader.root, other.root):
        (root / CACHE_FOLDER).touch()
        os.utime(root / "source.txt", (1, 1))
    sources = ("source.txt",)
    assert [reader.get(sources=sources), other.get(sources=sources)] == ["abc", "xyz"]
    assert [reader.get(sources=sources), other.get(sources=sources)] == ["abc", "xyz"]
    assert (reader.calls, other.calls) == (1, 1)


def test_nowhere_to_write_is_merely_slower(reader, tmp_path, caplog):
    (reader.root / CACHE_FOLDER).touch()
    (tmp_path / "user").touch()
    assert reader.get() == reader.get() == "abc"
    assert reader.calls == 2
    assert "No cache for table" in caplog.text


def test_files_that_change_while_they_are_read_are_not_stored(reader):
    def build():
        arrays = reader.build()
        (reader.root / "source.txt").write_text("changed")
        return arrays

    cached_arrays("table", reader.root, [reader.root / "source.txt"], 1, build)
    assert not (reader.root / CACHE_FOLDER).exists()


def test_a_failed_write_leaves_nothing_behind(reader, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert reader.get() == "abc"
    assert not any((reader.root / CACHE_FOLDER).iterdir())


def test_the_fingerprint_does_not_depend_on_the_place(reader, tmp_path):
    sources = [reader.root / "source.txt", reader.root / "folder"]
    before = fingerprint(sources, 1)
    reader.root.rename(tmp_path / "moved")
    assert fingerprint([tmp_path / "moved" / source.name for source in sources], 1) == before
