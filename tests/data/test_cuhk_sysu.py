"""CUHK-SYSU's reader on real frames, on the real protocol of 2,900 queries, on quirks and damaged downloads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from person_search.data import cuhk_sysu as cuhk_galleries
from person_search.data import records
from person_search.data.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol, person_number
from person_search.data.mapper import UnreadableImageError, read_frame
from person_search.errors import DatasetError
from scipy.io import loadmat, savemat


@pytest.fixture(scope="module")
def pristine(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "CUHK-SYSU"
    subprocess.run([sys.executable, shared / "tools" / "make_cuhk_sysu.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def root(pristine, tmp_path):
    """CUHK-SYSU of 8 frames, for the test to spoil."""
    return shutil.copytree(pristine, tmp_path / "CUHK-SYSU")


@pytest.fixture(scope="module")
def boxes(shared):
    """Frame -> {identity: (x0, y0, x1, y1)}."""
    images = json.loads((shared / "data" / "cuhk_sysu" / "frames_boxes.json").read_text())["images"]
    return {
        name: {int(pid[1:]): (x, y, x + w, y + h) for pid, (x, y, w, h) in persons.items()}
        for name, persons in images.items()
    }


def labelled(records):
    return {r["image_id"]: {a["person_id"]: tuple(a["bbox"]) for a in r["annotations"]} for r in records}


def cell(values):
    array = np.empty((len(values), 1), object)
    array[:, 0] = values
    return array


def struct_array(fields, rows):
    array = np.empty((1, len(rows)), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row)
    return array


def scene(*appearances):
    rows = [(name, np.array([xywh], np.uint16), np.array([[0]], np.uint8)) for name, xywh in appearances]
    return struct_array(["imname", "idlocate", "ishard"], rows)


def rewrite_images(root, edit):
    """Images.mat with `edit` applied to {frame: list of xywh}."""
    file = root / "annotation" / "Images.mat"
    content = {i["imname"].item(): [b["idlocate"].ravel() for b in i["box"].ravel()] for i in loadmat(file)["Img"][0]}
    edit(content)
    hard = np.array([[0]], np.uint8)
    rows = [
        (name, len(of), struct_array(["idlocate", "ishard"], [(np.array([b], np.uint16), hard) for b in of]))
        for name, of in content.items()
    ]
    savemat(file, {"Img": struct_array(["imname", "nAppear", "box"], rows)})


def test_real_frames_boxes_and_identities(root, boxes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    train, test = DatasetCatalog.get("cuhk_sysu_train"), DatasetCatalog.get("cuhk_sysu_test")
    names = sorted(boxes)
    assert [r["image_id"] for r in train] == names[:4] and [r["image_id"] for r in test] == names[4:]
    assert labelled(train) | labelled(test) == boxes
    for split in (train, test):
        rows = [a["instance_index"] for r in split for a in r["annotations"]]
        assert rows == list(range(len(rows)))
    assert train[0]["file_name"] == str(root / "Image" / "SSM" / names[0])
    assert (train[0]["width"], train[0]["height"]) == (800, 450)
    assert "camera_id" not in train[0]


def test_boxes_of_zero_width_are_dropped_and_counted(root, caplog):
    records = load_cuhk_sysu(root, "train")
    assert (
        "cuhk_sysu_train: dropped 1 boxes that are empty or outside their frame (for example box 1 of s15160.jpg"
        in caplog.text
    )
    assert sum(len(r["annotations"]) for r in records) == 9


def test_real_protocol_of_the_small_download(root, boxes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    protocol = MetadataCatalog.get("cuhk_sysu_test").load_protocol()
    assert protocol.kind == "cuhk_sysu"
    assert list(protocol.galleries) == ["50", "100"] and len(protocol.galleries) == 2
    test = sorted(boxes)[4:]
    for query, *galleries in zip(protocol.queries, protocol.galleries["50"], protocol.galleries["100"], strict=True):
        assert query.bbox == boxes[query.image_id][query.person_id]
        for gallery in galleries:
            assert set(gallery.image_ids) == set(test) - {query.image_id}
            expected = {n: boxes[n][query.person_id] for n in gallery.image_ids if query.person_id in boxes[n]}
            assert gallery.boxes == expected


@pytest.fixture(scope="module")
def real_protocol(shared, tmp_path_factory):
    """The protocol of the real TestG100.mat, and what plain SciPy finds in that file."""
    root = tmp_path_factory.mktemp("real") / "CUHK-SYSU"
    folder = root / "annotation" / "test" / "train_test"
    folder.mkdir(parents=True)
    shutil.copy(shared / "data" / "cuhk_sysu" / "TestG100.mat", folder)
    content = [
        (
            [value.ravel() for value in row["Query"][0, 0]],
            [(entry[0].item(), entry[1].ravel().tolist()) for entry in row["Gallery"][0]],
        )
        for row in loadmat(folder / "TestG100.mat")["TestG100"][0]
    ]
    names = {name for query, gallery in content for name in [query[0].item(), *(n for n, _ in gallery)]}
    savemat(root / "annotation" / "pool.mat", {"pool": cell(sorted(names))})
    return root, load_cuhk_sysu_protocol(root), content, names


def test_all_real_queries_and_galleries(real_protocol):
    _, protocol, content, names = real_protocol
    assert len(protocol.queries) == 2900 and len(names) == 6978
    galleries = protocol.galleries["100"]
    assert len(galleries) == 2900
    for (listed, entries), query, gallery in zip(content, protocol.queries, galleries, strict=True):
        assert [query.image_id, f"p{query.person_id}"] == [listed[0].item(), listed[3].item()]
        assert gallery.image_ids == tuple(name for name, _ in entries) and len(entries) == 100
        # A frame that is listed twice keeps its first box, as in SeqNet's evaluator.
        shown = {name: xywh for name, xywh in reversed(entries) if xywh}
        assert gallery.boxes == {name: (x, y, x + w, y + h) for name, (x, y, w, h) in shown.items()}


def test_real_queries_are_those_of_the_golden_file(shared, real_protocol):
    with np.load(shared / "golden" / "search_cuhk_g100.npz") as golden:
        names, bboxes = golden["query_name"], golden["query_box"]
    queries = real_protocol[1].queries[:60]
    assert [q.image_id for q in queries] == names.tolist()
    np.testing.assert_array_equal([q.bbox for q in queries], bboxes)


def test_the_protocol_comes_back_from_the_cache(real_protocol, monkeypatch):
    root, protocol, _, _ = real_protocol
    expected = protocol.galleries["100"]
    monkeypatch.setattr(cuhk_galleries, "read_gallery", None)
    again = load_cuhk_sysu_protocol(root)
    assert again.queries == protocol.queries and again.galleries["100"] == expected


def test_a_gallery_is_read_when_it_is_asked_for(root, monkeypatch):
    read = []
    original = cuhk_galleries.read_gallery
    monkeypatch.setattr(cuhk_galleries, "read_gallery", lambda file: read.append(file.name) or original(file))
    galleries = load_cuhk_sysu_protocol(root).galleries
    assert "100" in galleries and "500" not in galleries and read == ["TestG50.mat"]
    assert galleries["100"] is galleries["100"]
    assert read == ["TestG50.mat", "TestG100.mat"]
    with pytest.raises(KeyError, match="no gallery file of size '500'; there are 50, 100"):
        galleries["500"]


def test_a_changed_gallery_file_is_noticed(root):
    file = root / "annotation" / "test" / "train_test" / "TestG50.mat"
    before = load_cuhk_sysu_protocol(root).queries
    savemat(file, {"TestG50": loadmat(file)["TestG50"][:, :2]})
    assert load_cuhk_sysu_protocol(root).queries == before[:2]


def test_sizes_must_ask_the_same_queries(root):
    file = root / "annotation" / "test" / "train_test" / "TestG100.mat"
    savemat(file, {"TestG100": loadmat(file)["TestG100"][:, :2]})
    galleries = load_cuhk_sysu_protocol(root).galleries
    with pytest.raises(DatasetError, match="TestG100.mat: has other queries"):
        galleries["100"]


def test_gallery_frames_must_be_test_frames(root, boxes):
    test = sorted(boxes)[4:]
    savemat(root / "annotation" / "pool.mat", {"pool": cell(test[:-1])})
    with pytest.raises(DatasetError, match=f"TestG50.mat: 1 gallery frames are not in pool.mat, such as {test[-1]}"):
        load_cuhk_sysu_protocol(root).galleries["50"]


def test_a_query_outside_the_pool_is_named(root, boxes):
    query = load_cuhk_sysu_protocol(root).queries[0]
    savemat(root / "annotation" / "pool.mat", {"pool": cell([n for n in sorted(boxes) if n != query.image_id])})
    with pytest.raises(DatasetError, match=f"cuhk_sysu_test: query 0 .* lies in the frame '{query.image_id}'"):
        load_cuhk_sysu_protocol(root)


def test_without_person_mat_the_protocol_lists_label(root, boxes):
    (root / "annotation" / "Person.mat").unlink()
    train, test = labelled(load_cuhk_sysu(root, "train")), labelled(load_cuhk_sysu(root, "test"))
    assert train == {name: boxes[name] for name in train}
    queried = {query.person_id for query in load_cuhk_sysu_protocol(root).queries}
    for name, persons in test.items():
        assert {pid: box for pid, box in persons.items() if pid >= 0} == {
            pid: box for pid, box in boxes[name].items() if pid in queried
        }


def test_unlabelled_boxes_and_frames_without_boxes(root):
    def edit(content):
        content["s15160.jpg"].append(np.array([10, 20, 30, 40]))
        content["s15161.jpg"].clear()

    rewrite_images(root, edit)
    records = load_cuhk_sysu(root, "train")
    assert labelled(records)["s15160.jpg"][-1] == (10, 20, 40, 60)
    assert labelled(records)["s15161.jpg"] == {}


def test_of_two_equal_boxes_the_first_is_the_persons(root):
    rewrite_images(root, lambda content: content["s15160.jpg"].insert(0, content["s15160.jpg"][0]))
    annotations = load_cuhk_sysu(root, "train")[0]["annotations"]
    assert [a["person_id"] for a in annotations] == [11731, -1]
    assert annotations[0]["bbox"] == annotations[1]["bbox"]


def test_a_labelled_box_that_matches_none_is_counted(root, caplog):
    def edit(content):
        content["s15160.jpg"][0][0] += 1

    rewrite_images(root, edit)
    records = load_cuhk_sysu(root, "train")
    assert [a["person_id"] for a in records[0]["annotations"]] == [-1]
    assert "cuhk_sysu_train: 1 labelled boxes are not in Images.mat, such as ('s15160.jpg'" in caplog.text


def test_the_benchmarks_list_goes_before_person_mat(root):
    (name, xywh) = "s15160.jpg", [283, 125, 100, 316]
    savemat(
        root / "annotation" / "Person.mat",
        {"Person": struct_array(["idname", "nAppear", "scene"], [("p5", 1, scene((name, xywh)))])},
    )
    assert [a["person_id"] for a in load_cuhk_sysu(root, "train")[0]["annotations"]] == [11731]
    empty = struct_array(["idname", "nAppear", "scene"], [("p9", 0, scene())])
    savemat(root / "annotation" / "test" / "train_test" / "Train.mat", {"Train": cell([empty])})
    assert [a["person_id"] for a in load_cuhk_sysu(root, "train")[0]["annotations"]] == [5]


def test_the_cache_notices_changed_annotations_and_images(root):
    before = load_cuhk_sysu(root, "train")
    shutil.copy(root / "Image" / "SSM" / "s15164.jpg", root / "Image" / "SSM" / "s15160.jpg")
    rewrite_images(root, lambda content: content["s15160.jpg"].append(np.array([10, 20, 30, 40])))
    after = load_cuhk_sysu(root, "train")
    assert len(after[0]["annotations"]) == len(before[0]["annotations"]) + 1


def test_missing_images_are_counted_and_the_first_named(root):
    for name in ("s15161.jpg", "s15163.jpg"):
        (root / "Image" / "SSM" / name).unlink()
    with pytest.raises(DatasetError, match="cuhk_sysu_train: 2 of 4 images are missing, the first is .*s15161.jpg"):
        load_cuhk_sysu(root, "train")
    assert len(load_cuhk_sysu(root, "test")) == 4


@pytest.mark.parametrize(
    "missing, split",
    [
        ("Images.mat", "train"),
        ("pool.mat", "train"),
        ("test/train_test/Train.mat", "train"),
        ("Images.mat", "test"),
        ("pool.mat", "test"),
    ],
)
def test_missing_files_are_explained(root, missing, split):
    (root / "annotation" / missing).unlink()
    with pytest.raises(DatasetError, match=f"cuhk_sysu_{split}: the file .*{missing} is missing.*DETECTRON2_DATASETS"):
        load_cuhk_sysu(root, split)


def test_missing_gallery_files_are_explained(root):
    for file in (root / "annotation" / "test" / "train_test").glob("TestG*.mat"):
        file.unlink()
    message = "cuhk_sysu_test: the file .*TestG50.mat is missing.*TestG50.mat to TestG4000.mat"
    with pytest.raises(DatasetError, match=message):
        load_cuhk_sysu_protocol(root)
    with pytest.raises(DatasetError, match=message):
        load_cuhk_sysu(root, "test")


def test_pool_frames_must_have_annotations(root):
    rewrite_images(root, lambda content: content.pop("s15167.jpg"))
    with pytest.raises(DatasetError, match="Images.mat: lacks 1 frames of pool.mat, such as s15167.jpg"):
        load_cuhk_sysu(root, "test")


def test_a_frame_listed_twice_is_named(root):
    file = root / "annotation" / "Images.mat"
    images = loadmat(file)["Img"]
    savemat(file, {"Img": np.concatenate([images, images[:, :1]], axis=1)})
    with pytest.raises(DatasetError, match=r"Images.mat: Img\(9\): the frame s15160.jpg occurs twice"):
        load_cuhk_sysu(root, "train")


def test_malformed_entries_are_named(root):
    rows = [("p1", 1, scene(("s15160.jpg", [1, 2, 3, 4]))), ("q2", 1, scene())]
    savemat(root / "annotation" / "Person.mat", {"Person": struct_array(["idname", "nAppear", "scene"], rows)})
    with pytest.raises(DatasetError, match=r"Person.mat: Person\(2\): expected an identity such as p123, found 'q2'"):
        load_cuhk_sysu(root, "train")
    rows = [("p1", 1, scene(("s15160.jpg", [1, 2, 3])))]
    savemat(root / "annotation" / "Person.mat", {"Person": struct_array(["idname", "nAppear", "scene"], rows)})
    with pytest.raises(DatasetError, match=r"Person.mat: Person\(1\): expected a box of 4 numbers"):
        load_cuhk_sysu(root, "train")
    savemat(root / "annotation" / "Images.mat", {"Img": struct_array(["name"], [("s15160.jpg",)])})
    with pytest.raises(DatasetError, match=r"Images.mat: Img\(1\): .*imname"):
        load_cuhk_sysu(root, "train")


def test_a_query_without_a_box_is_named(root):
    file = root / "annotation" / "test" / "train_test" / "TestG50.mat"
    content = loadmat(file)["TestG50"]
    content[0, 1]["Query"][0, 0]["idlocate"] = np.array([[5, 5, 0, 9]], np.uint16)
    savemat(file, {"TestG50": content})
    with pytest.raises(DatasetError, match=r"TestG50.mat: TestG50\(2\): the query's box is \(5.0, 5.0, 0.0, 9.0\)"):
        load_cuhk_sysu_protocol(root)


def test_person_names():
    assert person_number("p123") == person_number("123") == 123
    for bad in ("", "p", "x1", "p1x"):
        with pytest.raises(ValueError):
            person_number(bad)


@pytest.mark.parametrize("file", ["Images.mat", "test/train_test/TestG50.mat"])
def test_another_kind_of_variable_is_named(root, file):
    path = root / "annotation" / file
    variable = "Img" if file == "Images.mat" else "TestG50"
    savemat(path, {variable: np.arange(3)})
    message = rf"{path.name}: {variable}: expected a struct array, .*; fetch the file again"
    with pytest.raises(DatasetError, match=message):
        load_cuhk_sysu(root, "test")


def test_an_unreadable_image_is_counted_and_left_to_whoever_loads_it(root, caplog, monkeypatch):
    before = load_cuhk_sysu(root, "train")
    image = root / "Image" / "SSM" / before[1]["image_id"]
    image.write_bytes(b"")
    for _ in range(2):  # from the files, then from the cache
        caplog.clear()
        monkeypatch.setattr(records, "_said", set())  # another run
        after = load_cuhk_sysu(root, "train")
        assert f"1 images cannot be read (for example {image})" in caplog.text
    assert [[a["bbox"] for a in r["annotations"]] for r in after] == [
        [a["bbox"] for a in r["annotations"]] for r in before
    ]
    with pytest.raises(UnreadableImageError, match=f"{image.name}: cannot be read as an image"):
        read_frame(after[1], "RGB")
