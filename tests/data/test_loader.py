"""The loaders: resumption, independence of the workers, ranks, damaged images."""

from __future__ import annotations

import itertools
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import BoxMode
from person_search.data.loader import build_bank_loader, build_test_loader, build_train_loader, seeded_rng
from person_search.data.mapper import PersonSearchMapper
from person_search.data.masks import encode_rle
from person_search.errors import ConfigError, DatasetError
from PIL import Image

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(1)
    found = []
    for i in range(7):
        file = tmp_path / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(file)
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[10:40, 12 + i : 30] = True
        annotation = {
            "bbox": [10.0 + i, 8.0, 32.0, 45.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0,
            "person_id": i, "instance_index": i, "segmentation": encode_rle(mask),
        }  # fmt: skip
        size = {"height": HEIGHT, "width": WIDTH}
        found.append({"file_name": str(file), "image_id": file.name, "annotations": [annotation], **size})
    return found


def truncate(record, keep=0.6):
    with open(record["file_name"], "r+b") as file:
        file.truncate(int(len(file.read()) * keep))


class NoisyMapper(PersonSearchMapper):
    """Also tells what the three random generators would give an augmentation."""

    def __call__(self, record):
        output = super().__call__(record)
        output["noise"] = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return output


def train_mapper():
    augmentations = [T.ResizeShortestEdge([30, 45, 60], 200, "choice"), T.RandomFlip()]
    return NoisyMapper(True, augmentations=augmentations, image_format="RGB", use_masks=True)


def eval_mapper(**options):
    augmentations = [T.ResizeShortestEdge([30], 200, "choice")]
    return PersonSearchMapper(False, augmentations=augmentations, image_format="RGB", use_masks=True, **options)


def train_loader(records, **options):
    options = {"batch_size": 2, "seed": 5, "rank": 0, "world_size": 1, **options}
    return build_train_loader(records, train_mapper(), **options)


def take(loader, count):
    return list(itertools.islice(loader, count))


def ids(batches):
    return [sample["image_id"] for batch in batches for sample in batch]


def assert_same(one, other):
    """Two lists of batches agree in every tensor and every other value."""
    assert len(one) == len(other)
    for left, right in zip(itertools.chain(*one), itertools.chain(*other), strict=True):
        assert set(left) == set(right)
        for key, value in left.items():
            if key == "instances":
                assert value.gt_boxes.tensor.equal(right[key].gt_boxes.tensor)
                assert value.gt_masks.tensor.equal(right[key].gt_masks.tensor)
                assert value.gt_instance_index.equal(right[key].gt_instance_index)
            elif isinstance(value, torch.Tensor):
                assert value.equal(right[key]), key
            else:
                assert value == right[key], key


def test_batches_do_not_depend_on_the_workers(records):
    alone = take(train_loader(records), 9)
    assert_same(alone, take(train_loader(records, num_workers=2), 9))
    # The augmentations are random: sizes and noise differ from draw to draw.
    assert len({sample["image"].shape for batch in alone for sample in batch}) > 1
    assert len({tuple(sample["noise"].tolist()) for batch in alone for sample in batch}) == 18


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_later_start_gives_the_tail(records, num_workers):
    loader = train_loader(records)
    assert loader.iterations_per_epoch == 4
    whole = take(loader, 9)
    assert sorted(ids(whole[:4])[:7]) == [f"{i}.jpg" for i in range(7)]
    assert_same(whole[6:], take(train_loader(records, start_iteration=6, num_workers=num_workers), 3))


def test_the_same_image_is_augmented_anew_in_each_epoch(records):
    batches = take(train_loader(records[:1], batch_size=1), 30)
    assert len({sample["noise"][1].item() for batch in batches for sample in batch}) == 30
    assert {sample["image"].shape[1] for batch in batches for sample in batch} == {30, 45, 60}
    other = take(train_loader(records[:1], batch_size=1, seed=6), 1)
    assert other[0][0]["noise"][1] != batches[0][0]["noise"][1]


def test_the_ranks_together_load_the_batches_of_one_process(records):
    alone = take(train_loader(records, batch_size=4), 5)
    shares = [take(train_loader(records, batch_size=4, rank=r, world_size=2), 5) for r in range(2)]
    merged = [[a[0], b[0], a[1], b[1]] for a, b in zip(*shares, strict=True)]
    assert_same(alone, merged)
    with pytest.raises(ConfigError, match="SOLVER.IMS_PER_BATCH is 3"):
        train_loader(records, batch_size=3, world_size=2)


def test_loading_leaves_the_random_generators_alone(records):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    take(train_loader(records), 3)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_seeding_is_undone_after_an_error():
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    with pytest.raises(ZeroDivisionError), seeded_rng(1, 2):
        raise ZeroDivisionError
    assert np.random.rand() == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_are_skipped_and_counted(records, num_workers, caplog):
    clean = take(train_loader(records), 8)
    truncate(records[2])
    (gone := records[3])["file_name"] += ".gone"
    loader = train_loader(records, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 8)
    replaced = 0
    for before, after in zip(itertools.chain(*clean), itertools.chain(*batches), strict=True):
        if before["image_id"] in ("2.jpg", "3.jpg"):
            replaced += 1
            bad = [r["file_name"] for r in records[2:4] if r["image_id"] >= before["image_id"]]
            assert after["image_id"] == "4.jpg" and after["skipped_files"] == tuple(bad)
            assert torch.equal(before["noise"], after["noise"])
        else:
            assert after["image_id"] == before["image_id"] and after["skipped_files"] == ()
    assert replaced >= 4
    assert set(loader.skipped) == {records[2]["file_name"], gone["file_name"]}
    assert sum(loader.skipped.values()) == sum(len(s["skipped_files"]) for b in batches for s in b)
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(lines) == 2
    for record in records[2:4]:
        assert sum(line.startswith("skipped: ") and record["file_name"] in line for line in lines) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_stops_when_no_image_can_be_read(records, num_workers):
    for record in records:
        truncate(record, 0.3)
    with pytest.raises(DatasetError, match="none of 7 images can be read") as caught:
        take(train_loader(records, num_workers=num_workers), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_reach_the_user_as_one_line(records, num_workers):
    for record in records:
        record["height"] = 61
    for loader in (
        train_loader(records, num_workers=num_workers),
        build_test_loader(records, eval_mapper(), num_workers=num_workers),
        build_bank_loader(records, eval_mapper(with_instances=True), num_workers=num_workers),
    ):
        with pytest.raises(DatasetError, match="the image is 80 x 60 pixels") as caught:
            take(loader, 1)
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_defect_of_the_mapper_is_not_taken_for_a_damaged_image(records):
    def broken(record):
        return record["no such key"]

    loader = build_train_loader(records, broken, batch_size=1, seed=0, rank=0, world_size=1)
    with pytest.raises(KeyError, match="no such key"):
        take(loader, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_stops_at_a_damaged_image(records, num_workers):
    truncate(records[2])
    loader = build_test_loader(records, eval_mapper(), num_workers=num_workers)
    assert len(loader) == 7
    seen = []
    with pytest.raises(DatasetError, match="2.jpg"):
        seen.extend(sample["image_id"] for batch in loader for sample in batch)
    assert seen == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bank_filling_goes_over_the_readable_images_in_order(records, num_workers, caplog):
    truncate(records[2])
    loader = build_bank_loader(records, eval_mapper(with_instances=True), num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        first, second = list(loader), list(loader)
    assert_same(first, second)
    assert ids(first) == [f"{i}.jpg" for i in (0, 1, 3, 4, 5, 6)]
    assert all(len(batch) == 1 for batch in first)
    assert [batch[0]["instances"].gt_instance_index.item() for batch in first] == [0, 1, 3, 4, 5, 6]
    assert loader.skipped == {records[2]["file_name"]: 2}
    assert len([r for r in caplog.records if "2.jpg" in r.getMessage()]) == 1


def test_bank_filling_stops_when_no_image_can_be_read(records):
    for record in records:
        record["file_name"] += ".gone"
    with pytest.raises(
        DatasetError, match="none of 7 images can be read, for example .*0.jpg.gone; see the warnings above"
    ):
        list(build_bank_loader(records, eval_mapper(with_instances=True)))


@pytest.mark.parametrize("build", [build_test_loader, build_bank_loader])
def test_the_ranks_share_the_images_in_order(records, build, monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr("detectron2.data.samplers.distributed_sampler.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.data.samplers.distributed_sampler.comm.get_world_size", lambda: 3)
        loader = build(records, eval_mapper())
        assert len(loader) == len(InferenceSampler(7))
        seen.append(ids(loader))
    assert [len(part) for part in seen] == [3, 2, 2]
    assert sum(seen, []) == [f"{i}.jpg" for i in range(7)]


def test_an_empty_data_set_is_an_error():
    for build in (build_test_loader, build_bank_loader):
        with pytest.raises(DatasetError, match="no images"):
            build([], eval_mapper())
    with pytest.raises(DatasetError, match="no images"):
        train_loader([])
