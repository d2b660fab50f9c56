"""Frames of videos are the same whatever the order in which they are read."""

from __future__ import annotations

import hashlib
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from person_search.data import video
from person_search.data.video import read_video_frame, split_video_frame, video_frame_name, video_shape
from person_search.errors import DatasetError

ORDER = [0, 1, 2, 300, 299, 298, 299, 794, 0, 70, 5, 133, 134, 134, 700, 12]


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def decoded(file, wanted):
    """Frame -> digest, from decoding `file` from its start."""
    capture, digests = cv2.VideoCapture(str(file)), {}
    for number in range(max(wanted) + 1):
        assert capture.grab()
        if number in wanted:
            digests[number] = digest(capture.retrieve()[1])
    return digests


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No open video and no cache of another test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(video, "_videos", video._Videos())


@pytest.fixture(scope="module")
def pets(shared):
    return str(shared / "data" / "pets09_s2l1" / "vtest.avi")


@pytest.fixture(scope="module")
def truth(pets):
    return decoded(pets, set(ORDER))


@pytest.fixture
def clip(tmp_path):
    """A video of 200 frames of rising brightness."""
    file = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    for number in range(200):
        writer.write(np.full((48, 64, 3), number, np.uint8))
    writer.release()
    return str(file)


def test_names_go_both_ways():
    name = video_frame_name("/a b/c#frame=2.avi", 17)
    assert name == "/a b/c#frame=2.avi#frame=17"
    assert split_video_frame(name) == ("/a b/c#frame=2.avi", 17)
    for other in ("/a/b.jpg", "a#frame=", "a#frame=-1", "a#frame=x", "#frame"):
        assert split_video_frame(other) is None


def test_any_order_gives_the_frames_of_plain_decoding(pets, truth):
    for number in ORDER:
        image = read_video_frame(pets, number)
        assert image.shape == (576, 768, 3) and image.dtype == np.uint8
        assert digest(image) == truth[number], number


def test_shape_counts_what_can_be_decoded(pets):
    assert video_shape(pets) == (795, 576, 768)


def test_frames_belong_to_the_caller(clip):
    first = read_video_frame(clip, 3)
    before = first.copy()
    read_video_frame(clip, 4)
    np.testing.assert_array_equal(first, before)
    first[:] = 0
    np.testing.assert_array_equal(read_video_frame(clip, 3), before)


def test_rising_order_never_jumps(clip, monkeypatch):
    monkeypatch.setattr(video._Video, "_jump", None)
    order = (0, 1, 1, 5, 60, 123)
    plain = decoded(clip, set(order))
    assert [digest(read_video_frame(clip, number)) for number in order] == [plain[number] for number in order]


class Untrustworthy:
    """A decoder whose jumps miss by `error` frames, or whose frames have no time."""

    error, timeless = 0, False

    def __init__(self, *arguments):
        self.capture = cv2_capture(*arguments)

    def __getattr__(self, name):
        return getattr(self.capture, name)

    def set(self, key, number):
        return self.capture.set(key, max(number + self.error, 0))

    def get(self, key):
        return 0.0 if self.timeless and key == cv2.CAP_PROP_POS_MSEC else self.capture.get(key)


cv2_capture = cv2.VideoCapture


@pytest.mark.parametrize("error, timeless", [(0, False), (-7, False), (5, False), (1000, False), (3, True)])
def test_a_decoder_that_jumps_wrongly_does_no_harm(clip, monkeypatch, error, timeless):
    monkeypatch.setattr(Untrustworthy, "error", error)
    monkeypatch.setattr(Untrustworthy, "timeless", timeless)
    monkeypatch.setattr(cv2, "VideoCapture", Untrustworthy)
    order = [150, 10, 199, 0, 80, 79, 180]
    plain = decoded(clip, set(order))
    assert [digest(read_video_frame(clip, number)) for number in order] == [plain[number] for number in order]


def test_jumps_use_the_decoders_seeking_where_it_is_right(clip, monkeypatch):
    grabbed = []

    class Counting(Untrustworthy):
        def grab(self):
            grabbed.append(1)
            return self.capture.grab()

    video_shape(clip)
    monkeypatch.setattr(cv2, "VideoCapture", Counting)
    monkeypatch.setattr(video, "_videos", video._Videos())
    read_video_frame(clip, 190)
    assert len(grabbed) < 40


def test_time_stamps_are_kept_on_disk(clip, monkeypatch):
    video_shape(clip)
    monkeypatch.setattr(video, "_scan", None)
    assert video_shape(clip) == (200, 48, 64)


class Frames(torch.utils.data.Dataset):
    def __init__(self, file, order):
        self.file, self.order = file, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return digest(read_video_frame(self.file, self.order[index]))


def test_forked_workers_do_not_disturb_each_other(pets, truth):
    read_video_frame(pets, 40)  # the parent's decoder is open, and its place is shared with what a fork inherits
    loader = torch.utils.data.DataLoader(
        Frames(pets, ORDER), batch_size=1, num_workers=2, multiprocessing_context="fork"
    )
    assert [batch[0] for batch in loader] == [truth[number] for number in ORDER]
    assert digest(read_video_frame(pets, 133)) == truth[133]


def test_few_videos_stay_open(clip, tmp_path):
    for number in range(video.OPEN_VIDEOS + 3):
        copy = shutil.copy(clip, tmp_path / f"{number}.mp4")
        read_video_frame(str(copy), 2)
    files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert sum(file.startswith(str(tmp_path.resolve())) for file in files) == video.OPEN_VIDEOS


def test_a_frame_past_the_end_is_named_and_harmless(clip):
    with pytest.raises(DatasetError, match="clip.mp4: has no frame 200, counted from 0; it ends after 200"):
        read_video_frame(clip, 200)
    with pytest.raises(DatasetError, match="clip.mp4: has no frame 5000"):
        read_video_frame(clip, 5000)
    assert digest(read_video_frame(clip, 120)) == decoded(clip, {120})[120]


def test_missing_and_damaged_videos_are_named(tmp_path):
    with pytest.raises(DatasetError, match="no.avi: the video is missing"):
        read_video_frame(str(tmp_path / "no.avi"), 0)
    (tmp_path / "bad.avi").write_bytes(b"no video")
    with pytest.raises(DatasetError, match="bad.avi: cannot be read as a video"):
        read_video_frame(str(tmp_path / "bad.avi"), 0)


def test_a_cut_video_ends_where_it_was_cut(pets, tmp_path):
    with open(pets, "rb") as source:
        (tmp_path / "cut.avi").write_bytes(source.read(2_000_000))
    cut = str(tmp_path / "cut.avi")
    frames, height, width = video_shape(cut)
    assert 10 < frames < 795 and (height, width) == (576, 768)
    with pytest.raises(DatasetError, match=rf"cut.avi: has no frame 794, counted from 0; it ends after {frames}"):
        read_video_frame(cut, 794)


@pytest.fixture
def lose(clip, monkeypatch):
    """Makes the decoder pass over some frames of the clip, as decoders do over damaged packets."""

    def make(lost):
        class Lossy(Untrustworthy):
            number = -1

            def grab(self):
                self.number += 1
                while self.number in lost:
                    self.number += 1
                    if not self.capture.grab():
                        return False
                return self.capture.grab()

        monkeypatch.setattr(cv2, "VideoCapture", Lossy)
        monkeypatch.setattr(video, "_videos", video._Videos())
        return clip

    return make


@pytest.mark.parametrize("lost, left, first", [((20, 21, 22, 40), 196, 21), ((0, 1, 2), 197, 1)])
def test_lost_frames_make_the_numbering_wrong(lose, lost, left, first):
    file = lose(lost)
    assert video_shape(file)[0] == left  # those after the first lost one are not the frames that their numbers say
    with pytest.raises(DatasetError, match=f"promises 200 frames, but only {left} .*before frame {first} are missing"):
        video.check_numbering(file)


def test_a_whole_video_is_numbered_well(clip, caplog):
    video.check_numbering(clip)
    assert not caplog.records


def test_a_video_without_its_end_keeps_its_numbers(pets, tmp_path, caplog):
    with open(pets, "rb") as source:
        (tmp_path / "cut.avi").write_bytes(source.read(2_000_000))
    video.check_numbering(tmp_path / "cut.avi")
    assert "cut.avi: ends after" in caplog.text and "of the 795 frames that it promises" in caplog.text


def test_a_video_whose_frames_have_no_time_is_refused_where_some_are_lost(lose, monkeypatch):
    monkeypatch.setattr(Untrustworthy, "timeless", True)
    with pytest.raises(DatasetError, match="those before an unknown frame are missing"):
        video.check_numbering(lose((198, 199)))
