"""Persons: looks, poses and their drawing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.synthetic import PRESETS
from person_search.synthetic import pose as anatomy
from person_search.synthetic.canvas import Canvas
from person_search.synthetic.figure import draw_person
from person_search.synthetic.furniture import KINDS, draw_furniture
from person_search.synthetic.looks import PATTERNS, identity_look, passer_by_look
from person_search.synthetic.pose import Pose, joints, sample_pose, view
from person_search.synthetic.textures import FRONT, TURN, trunk, visible_half

DEMO = PRESETS["demo"]
PLAIN = replace(identity_look(DEMO, 0), pattern="plain", bag="none", hair_style="short", bottom="trousers")
poses = st.builds(
    Pose,
    yaw=st.floats(-np.pi, np.pi),
    head_yaw=st.floats(-np.pi, np.pi),
    phase=st.floats(0, 2 * np.pi),
    stride=st.floats(0, 0.55),
    raised_arm=st.sampled_from([0.0, 2.1]),
)


@given(poses, st.integers(0, 49))
def test_bones_keep_their_lengths_and_feet_touch_the_ground(pose: Pose, person_id: int) -> None:
    look = identity_look(DEMO, person_id)
    points = joints(pose, look)
    for side in ("left", "right"):
        for upper, lower, share in (("hip", "knee", anatomy.THIGH), ("knee", "ankle", anatomy.SHIN)):
            length = np.linalg.norm(points[f"{side}_{upper}"] - points[f"{side}_{lower}"])
            assert length == pytest.approx(share * look.stature)
    lowest = min(points[f"{side}_ankle"][1] for side in ("left", "right"))
    assert lowest == pytest.approx(0.04 * look.stature)
    assert points["head"][1] > points["neck"][1] > points["pelvis"][1] > lowest


def test_the_legs_swing_against_each_other() -> None:
    forward = [joints(Pose(0, 0, phase, 0.4, 0), PLAIN) for phase in (np.pi / 2, 3 * np.pi / 2)]
    assert forward[0]["left_knee"][2] > 0.1 > -0.1 > forward[0]["right_knee"][2]
    assert forward[1]["right_knee"][2] > 0.1 > -0.1 > forward[1]["left_knee"][2]
    # Arms swing against the legs.
    assert forward[0]["left_elbow"][2] < forward[0]["right_elbow"][2]


@pytest.mark.parametrize(
    ("yaw", "right", "depth"),
    [(0, 0.3, 0.5), (np.pi / 2, 0.5, -0.3), (np.pi, -0.3, -0.5), (-np.pi / 2, -0.5, 0.3)],
)
def test_view_turns_the_body(yaw: float, right: float, depth: float) -> None:
    place, towards = view(np.array([0.3, 1.1, 0.5]), yaw)
    assert place == pytest.approx([right, 1.1])
    assert towards == pytest.approx(depth)


@settings(max_examples=40, deadline=None)
@given(poses, st.integers(0, 49), st.floats(18, 140))
def test_a_drawn_person_is_as_tall_as_its_stature(pose: Pose, person_id: int, scale: float) -> None:
    look = identity_look(DEMO, person_id)
    sprite = draw_person(look, pose, scale, 0.3)
    rows = np.flatnonzero(sprite.solid.any(1))
    # A long stride takes up to a tenth of the stature, a bun adds a little.
    assert 0.84 * look.stature * scale - 2 <= rows[-1] + 1 - rows[0] <= 1.06 * look.stature * scale + 2
    assert rows[-1] + 1 == pytest.approx(sprite.anchor[1], abs=0.04 * scale + 1.5)
    assert not sprite.solid[:, [0, -1]].any(), "the drawing surface cuts the person"
    assert sprite.alpha.min() == 0 and sprite.alpha.max() <= 1
    assert (sprite.rgb <= 255 * sprite.alpha[..., None] + 1).all(), "colors are multiplied by alpha"


def test_a_person_looks_the_same_from_near_and_from_far() -> None:
    pose = Pose(0.4, 0.3, 1.0, 0.4, 0.0)
    near, far = (draw_person(PLAIN, pose, scale, 0.0) for scale in (120.0, 24.0))
    colors = [sprite.rgb.sum((0, 1)) / sprite.alpha.sum() for sprite in (near, far)]
    assert colors[0] == pytest.approx(colors[1], abs=3)
    assert near.alpha.sum() / far.alpha.sum() == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
def test_every_pattern_shows_and_vanishes_in_the_distance(pattern: str) -> None:
    look = replace(PLAIN, pattern=pattern, top_color=(40, 60, 140), accent=(220, 180, 60))
    texture = trunk(look).astype(int)
    accent = (abs(texture - [220, 180, 60]).sum(-1) < 120).mean()
    assert 0.02 < accent < 0.7


def test_the_logo_is_in_front_and_the_print_behind() -> None:
    for pattern, visible, hidden in (("logo", 0.0, np.pi), ("back_print", np.pi, np.pi / 2)):
        texture = trunk(replace(PLAIN, pattern=pattern, top_color=(40, 60, 140), accent=(220, 180, 60)))
        shown, other = (int((visible_half(texture, yaw, 0.0)[20:60, 6:-6, 0] > 120).sum()) for yaw in (visible, hidden))
        assert shown > 300
        assert other < 0.25 * shown


def test_turning_the_body_moves_its_surface_across_the_view() -> None:
    texture = np.zeros((4, TURN, 3), np.uint8)
    mark = FRONT + TURN // 6  # 60 degrees from the front to the body's left
    texture[:, mark - 3 : mark + 3] = 200

    def column(yaw: float) -> int:
        return int(np.flatnonzero(visible_half(texture, yaw, 0.0)[0, :, 0]).mean())

    # From the front the left side is on the right of the image; turned by -60 degrees the mark faces the camera.
    assert column(0.0) == pytest.approx(36 * (1 + np.sin(np.pi / 3)), abs=2)
    assert column(-np.pi / 3) == pytest.approx(36, abs=2)
    assert visible_half(texture, np.pi / 2, 0.0).max() == 0


def test_families_share_colors_and_differ_in_details() -> None:
    size = DEMO.family_size
    looks = [identity_look(DEMO, person) for person in range(DEMO.train_identities + DEMO.test_identities)]
    for start in range(0, len(looks) - size + 1, size):
        family = looks[start : start + size]
        assert len({(look.top_color, look.bottom_color) for look in family}) == 1
        for detail in ("pattern", "hair_style", "bag"):
            assert len({getattr(look, detail) for look in family}) == size
    assert len(set(looks)) == len(looks), "two identities look exactly alike"
    assert identity_look(DEMO, 7) == identity_look(DEMO, 7)


def test_the_palette_is_limited() -> None:
    few = replace(DEMO, colors=3)
    assert len({identity_look(few, person).top_color for person in range(50)}) == 3
    rng = np.random.default_rng(0)
    assert len({passer_by_look(few, rng).bottom_color for _ in range(50)}) == 3


def test_poses_face_everywhere_and_most_walk() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_pose(rng) for _ in range(400)]
    assert np.histogram([pose.yaw for pose in drawn], 8, (-np.pi, np.pi))[0].min() > 25
    assert 0.7 < np.mean([pose.stride > 0.2 for pose in drawn]) < 0.9
    assert 0.05 < np.mean([pose.raised_arm > 0 for pose in drawn]) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_furniture_stands_on_the_ground_within_its_surface(kind: str) -> None:
    sprite = draw_furniture(kind, 40.0, 0.2, np.random.default_rng(1))
    rows = np.flatnonzero(sprite.solid.any(1))
    assert rows[0] > 0
    assert rows[-1] == pytest.approx(sprite.anchor[1], abs=6)
    assert not sprite.solid[:, [0, -1]].any()


def test_a_canvas_places_polygons_to_the_metre() -> None:
    canvas = Canvas((1.0, 1.0, 2.0, 0.0), scale=20.0, fine=4)
    canvas.fill(np.array([[-0.5, 0.5], [0.5, 0.5], [0.5, 1.5], [-0.5, 1.5]]), (200, 100, 50))
    sprite = canvas.sprite()
    assert sprite.alpha.sum() == pytest.approx(400, rel=0.04)
    rows, columns = np.nonzero(sprite.solid)
    assert columns.mean() + 0.5 == pytest.approx(sprite.anchor[0], abs=0.6)
    assert sprite.anchor[1] - (rows.mean() + 0.5) == pytest.approx(20, abs=0.6)
    assert sprite.rgb[sprite.alpha == 1].mean(0) == pytest.approx([200, 100, 50])


@pytest.mark.parametrize("far", [(100.0, 100.0), (-100.0, 1.0)])
def test_what_lies_outside_the_canvas_is_not_drawn(far: tuple[float, float]) -> None:
    canvas = Canvas((1.0, 1.0, 2.0, 0.0), scale=20.0, fine=2)
    canvas.limb(np.array(far), np.array(far) + [0, -1], (0.2, 0.2), np.full((2, 3), 100, np.float32))
    assert not canvas.alpha.any()


def test_a_limb_seen_end_on_is_a_disc() -> None:
    canvas = Canvas((1.0, 1.0, 2.0, 0.0), scale=20.0, fine=4)
    middle = np.array([0.0, 1.0])
    canvas.limb(middle, middle, (0.5, 0.5), np.full((2, 3), 100, np.float32))
    assert canvas.sprite().alpha.sum() == pytest.approx(np.pi * 100, rel=0.05)
