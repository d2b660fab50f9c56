"""Frames of videos: exact numbers, times and pixels, in order and sought, upright, and what damaged files do."""

from __future__ import annotations

import random
import struct
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from person_search.errors import DatasetError
from person_search.search.video import VideoFrames, read_header, read_video_picture

HALF = Fraction(1, 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video, walk) -> dict[str, Path]:
    """The same walk as files that count time in different ways."""
    folder, images = tmp_path_factory.mktemp("videos"), walk(0, 60)
    gaps = [n + (20 if n >= 30 else 0) for n in range(60)]
    return {
        "plain": write_video(folder / "plain.mp4", images),
        "b_frames": write_video(folder / "b_frames.mp4", images, codec="libx264", b_frames=2),
        "gap": write_video(folder / "gap.mkv", images, times=gaps),
        "late_start": write_video(folder / "late.ts", images, codec="mpeg2video", fps=25, times=range(900, 960)),
        "avi": write_video(folder / "old.avi", images, gop=30),
    }


NAMES = ["plain", "b_frames", "gap", "late_start", "avi"]


@pytest.mark.parametrize("name", NAMES)
def test_sought_frames_are_those_of_plain_decoding(videos, name):
    frames = list(VideoFrames(str(videos[name])))
    assert [frame.number for frame in frames] == list(range(60))
    assert frames[0].offset == 0
    for frame in random.Random(0).sample(frames, 20):
        np.testing.assert_array_equal(read_video_picture(str(videos[name]), frame.number, frame.offset), frame.image)


def test_offsets_are_the_files_own_times(videos):
    offsets = [frame.offset for frame in VideoFrames(str(videos["gap"]))]
    np.testing.assert_allclose(np.diff(offsets)[:29], 0.1, atol=1e-9)
    assert offsets[30] - offsets[29] == pytest.approx(2.1)


def test_the_first_frame_of_each_interval_is_looked_at(videos):
    taken = [(frame.number, frame.offset) for frame in VideoFrames(str(videos["gap"]), HALF)]
    assert [number for number, _ in taken[:7]] == [0, 5, 10, 15, 20, 25, 30]
    slots = [int(offset // 0.5) for _, offset in taken]
    assert len(set(slots)) == len(slots)
    assert [number for number, _ in taken] == sorted({
        min(n for n, f in enumerate(VideoFrames(str(videos["gap"]))) if int((f.offset + 1e-9) // 0.5) == slot)
        for slot in slots
    })  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_behind_any_frame(videos, name):
    whole = list(VideoFrames(str(videos[name]), Fraction(1, 5)))
    for cut in (0, 1, 7, len(whole) - 2, len(whole) - 1):
        done = (whole[cut].number, whole[cut].offset)
        rest = list(VideoFrames(str(videos[name]), Fraction(1, 5), done))
        assert [(f.number, f.offset) for f in rest] == [(f.number, f.offset) for f in whole[cut + 1 :]]
        for one, other in zip(rest, whole[cut + 1 :], strict=True):
            np.testing.assert_array_equal(one.image, other.image)


def test_a_place_that_the_file_does_not_have_is_counted_off(videos):
    whole = list(VideoFrames(str(videos["plain"]), HALF))
    rest = list(VideoFrames(str(videos["plain"]), HALF, (whole[2].number, whole[2].offset + 0.013)))
    assert [frame.number for frame in rest] == [frame.number for frame in whole[3:]]
    with pytest.raises(DatasetError, match="no frame 600"):
        read_video_picture(str(videos["plain"]), 600, 60.0)


# Matrices of the track header, a b u c d v x y w in fixed point: what phones write for their four positions, and a
# mirrored picture. The numbers say how numpy turns the stored picture upright.
ONE = 1 << 16
TURNS = {
    "quarter": ((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), lambda image: np.rot90(image, -1)),
    "half": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), lambda image: np.rot90(image, 2)),
    "three_quarters": ((0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), lambda image: np.rot90(image, 1)),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), lambda image: image[:, ::-1]),
}


def turn(video: Path, matrix: tuple[int, ...], target: Path) -> Path:
    """Copies an MP4 file with another matrix in its track header."""
    content = bytearray(video.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8  # flags, times and ids; reserved; layer, volume
    assert struct.unpack_from(">9i", content, place) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, place, *matrix)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("name", TURNS)
def test_a_phones_video_is_turned_upright(videos, tmp_path, name):
    matrix, upright = TURNS[name]
    turned = turn(videos["plain"], matrix, tmp_path / "phone.mp4")
    for frame, stored in zip(VideoFrames(str(turned), HALF), VideoFrames(str(videos["plain"]), HALF), strict=True):
        np.testing.assert_array_equal(frame.image, upright(stored.image))
        assert frame.image.flags.c_contiguous
    np.testing.assert_array_equal(read_video_picture(str(turned), frame.number, frame.offset), frame.image)


def test_turning_agrees_with_the_angle_that_pyav_reports(videos, tmp_path):
    with av.open(str(turn(videos["plain"], TURNS["quarter"][0], tmp_path / "phone.mp4"))) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation in (90, -90)
        counterclockwise = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    first = next(iter(VideoFrames(str(tmp_path / "phone.mp4"))))
    np.testing.assert_array_equal(first.image, counterclockwise)


def test_the_header_has_rate_length_and_start(tmp_path, write_video, walk):
    path = write_video(tmp_path / "dated.mp4", walk(0, 20), metadata={"creation_time": "2024-05-01T12:30:00.000000Z"})
    header = read_header(str(path))
    assert header.fps == 10 and header.duration == pytest.approx(2.0)
    assert header.start == datetime(2024, 5, 1, 12, 30, tzinfo=timezone.utc)
    assert read_header(str(write_video(tmp_path / "undated.mp4", walk(0, 2)))).start is None


def test_a_file_that_is_cut_off_gives_the_frames_that_are_left(videos, tmp_path):
    content = videos["avi"].read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[: len(content) * 9 // 10])
    numbers = [frame.number for frame in VideoFrames(str(cut))]
    assert numbers == list(range(len(numbers))) and 5 < len(numbers) < 60


def test_damage_in_the_middle_is_skipped_and_counted(videos, tmp_path):
    content = bytearray(videos["b_frames"].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    frames = VideoFrames(str(tmp_path / "damaged.mp4"))
    count = sum(1 for _ in frames)
    assert frames.damaged > 0 and 10 < count < 60


@pytest.mark.parametrize("content", [b"", b"only text\n" * 400, b"\0\1\2\3" * 5000])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.mp4"):
        read_header(str(path))


def test_a_playlist_does_not_open_other_files(videos, tmp_path):
    listed = tmp_path / "list.mp4"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{videos['late_start']}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{videos['plain']}'\n",
    ):
        listed.write_text(text)
        with pytest.raises(DatasetError, match=r"list\.mp4"):
            list(VideoFrames(str(listed)))


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DatasetError, match="no video stream"):
        read_header(str(path))
