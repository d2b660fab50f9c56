"""Drawing of persons: parts of an articulated body, farthest first, textured with the person's look."""

from __future__ import annotations

import cv2
import numpy as np

from . import pose as anatomy
from . import textures
from .canvas import Canvas, Sprite, plain, shaded
from .looks import Color, Look
from .pose import Pose, joints, view

_FINE_HEIGHT = 260  # minimum height of a drawn person in canvas pixels, before reduction
# Outline of the trunk from the neck down: (fraction of its length, fraction of the half width).
_TRUNK = np.array(
    [
        *((-0.05, 0.3), (-0.02, 0.5), (0.03, 0.86), (0.08, 1.0), (0.2, 1.0)),
        *((0.4, 0.93), (0.65, 0.82), (0.9, 0.9), (1.0, 0.93)),
    ]
)


def draw_person(look: Look, pose: Pose, scale: float, light: float) -> Sprite:
    """Sprite of a person standing on the ground.

    Args:
        look: appearance.
        pose: posture and direction.
        scale: pixels per metre at the person's position.
        light: direction of the light, -1 .. 1.

    Returns:
        the sprite, anchored below the middle of the body at the height of the soles.
    """
    fine = int(np.clip(np.ceil(_FINE_HEIGHT / (look.stature * scale)), 2, 10))
    canvas = Canvas((0.75, 0.75, look.stature * 1.04, 0.06), scale, fine, light)
    _Figure(canvas, look, pose).draw()
    return canvas.sprite()


class _Figure:
    """Person on a canvas; each method draws one part."""

    def __init__(self, canvas: Canvas, look: Look, pose: Pose) -> None:
        self.canvas, self.look, self.pose = canvas, look, pose
        self.points, self.depths = {}, {}
        for name, point in joints(pose, look).items():
            self.points[name], self.depths[name] = view(point, pose.yaw)
        self.size = look.stature / anatomy.HEAD_HEIGHT * 0.94
        self.facing = float(np.cos(pose.yaw))

    def draw(self) -> None:
        far, near = sorted(("left", "right"), key=lambda side: self.depths[f"{side}_shoulder"])
        # Seen from the front or the back, both arms hang beside the trunk and are not hidden by it.
        apart = self.depths[f"{near}_shoulder"] - self.depths[f"{far}_shoulder"]
        if apart > 0.12:
            self.arm(far)
        self.bag(behind=True)
        if self.facing > -0.2:
            self.falling_hair()
        for side in sorted(("left", "right"), key=lambda side: self.depths[f"{side}_knee"]):
            self.leg(side)
        self.lower_garment()
        self.neck()
        self.trunk()
        self.head()
        if self.facing <= -0.2:
            self.falling_hair()
        self.bag(behind=False)
        if apart <= 0.12:
            self.arm(far)
        self.arm(near)

    def leg(self, side: str) -> None:
        """Thigh, shin and shoe."""
        size, canvas, p = self.size * self.look.build, self.canvas, self.points
        wide = 1.25 if self.look.bottom in ("trousers", "coat") else 1.0
        thigh, shin = textures.legs(self.look)
        shade = 1.0 if self.depths[f"{side}_knee"] >= -0.02 else 0.86
        shoe = plain(self.look.shoes, 3) * shade
        ankle, toe = p[f"{side}_ankle"], p[f"{side}_toe"]
        # Seen from the front, a shoe is foreshortened to its width, but still reaches down to its sole.
        canvas.limb(ankle + [0, -0.012], toe + [0, -0.004], (0.027 * size, 0.024 * size), shoe)
        canvas.limb(p[f"{side}_hip"], p[f"{side}_knee"], (0.054 * size, 0.036 * size * wide), thigh * shade)
        canvas.limb(p[f"{side}_knee"], ankle, (0.036 * size * wide, 0.022 * size * wide), shin * shade)

    def arm(self, side: str) -> None:
        """Upper arm, forearm, hand and what the hand carries."""
        size, canvas, p = self.size * self.look.build, self.canvas, self.points
        upper, lower = textures.sleeves(self.look)
        shade = 0.95 if self.depths[f"{side}_shoulder"] >= -0.05 else 0.8
        shoulder, elbow, wrist = (p[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        hand = wrist + 0.3 * (wrist - elbow)
        if side == "left" and self.look.bag == "hand":
            self.box(hand + [0, -0.2], (0.13, 0.14), self.look.bag_color)
            canvas.limb(hand, hand + [0, -0.1], (0.012, 0.012), plain(self.look.bag_color, 2))
        canvas.limb(wrist, hand, (0.018 * size, 0.02 * size), plain(self.look.skin, 3) * shade)
        canvas.limb(elbow, wrist, (0.027 * size, 0.02 * size), lower * shade)
        canvas.limb(shoulder + [0, -0.012], elbow, (0.032 * size, 0.026 * size), upper * shade)

    def trunk(self) -> None:
        """Shirt or jacket between shoulders and hips."""
        top = (self.points["left_shoulder"] + self.points["right_shoulder"]) / 2 + [0, 0.03]
        texture = textures.visible_half(textures.trunk(self.look), self.pose.yaw, self.canvas.light)
        self.hull(texture, top, self.points["pelvis"] + [0, -0.03], _TRUNK, self.half_width())

    def half_width(self) -> float:
        """Half the width of the trunk, an elliptic cylinder, as seen from the camera, in metres."""
        across = anatomy.SHOULDER_HALF_WIDTH * self.facing
        depth = anatomy.BODY_HALF_DEPTH * np.sin(self.pose.yaw)
        return 1.02 * self.size * self.look.build * float(np.hypot(across, depth))

    def lower_garment(self) -> None:
        """Skirt, or the lower part of a coat; nothing for trousers and shorts."""
        profiles = {"skirt": (0.19, 0.78, 1.12), "coat": (0.17, 0.9, 1.02)}
        if self.look.bottom not in profiles:
            return
        length, above, below = profiles[self.look.bottom]
        color = self.look.bottom_color if self.look.bottom == "skirt" else self.look.top_color
        rows = plain(color, 12)
        rows[-1] *= 0.8
        top = self.points["pelvis"] + [0, 0.03]
        knees = (self.points["left_knee"][0] + self.points["right_knee"][0]) / 2
        stride = abs(self.points["left_knee"][0] - self.points["right_knee"][0]) / 2
        width = self.half_width()
        below += 0.7 * stride / width
        bottom = np.array([top[0] + 0.6 * (knees - top[0]), top[1] - length * self.size])
        self.hull(shaded(rows, self.canvas.light), top, bottom, np.array([(0.0, above), (1.0, below)]), width)

    def neck(self) -> None:
        rows = plain(self.look.skin, 3) * 0.85
        radius = 0.034 * self.size
        self.canvas.limb(self.points["neck"], self.points["head"] + [0, -0.05], (radius, radius), rows)

    def head(self) -> None:
        """Face, hair and headwear."""
        centre, yaw = self.points["head"], self.pose.head_yaw
        half = np.array([np.hypot(0.047 * np.cos(yaw), 0.056 * np.sin(yaw)), 0.068]) * self.size
        texture = textures.visible_half(textures.head(self.look), yaw, self.canvas.light)
        corners = centre + half * [[-1, 1], [1, 1], [1, -1], [-1, -1]]
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        narrow = np.where(np.sin(angles) < 0, 1 - 0.16 * np.sin(angles) ** 2, 1.0)  # towards the chin
        outline = centre + half * np.stack([np.cos(angles) * narrow, np.sin(angles)], 1)
        self.canvas.paint(texture, corners, outline)
        forward = float(np.sin(yaw))
        if self.look.hair_style == "cap" and np.cos(yaw) > -0.5:
            front = centre + [half[0] * forward * 0.9, 0.02 * self.size]
            tip = front + [0.055 * forward, -0.01 - 0.012 * max(0.0, float(np.cos(yaw)))]
            rim = 0.014 + 0.028 * abs(float(np.cos(yaw)))
            brim = np.array([front + [-rim, 0.008], front + [rim, 0.008], tip + [rim, 0], tip + [-rim, 0]])
            self.canvas.fill(cv2.convexHull(brim.astype(np.float32))[:, 0], textures.darker(self.look.headwear, 0.6))

    def falling_hair(self) -> None:
        """Hair below the head: long hair, a ponytail, or a bun behind the crown."""
        behind = self.points["head"] + np.array([-0.05 * np.sin(self.pose.head_yaw), 0.0]) * self.size
        rows = plain(self.look.hair_color, 8)
        size = self.size
        if self.look.hair_style == "long":
            self.canvas.limb(behind + [0, 0.01], behind + [0, -0.11 * size], (0.05 * size, 0.058 * size), rows)
        elif self.look.hair_style == "ponytail":
            tail = behind + [-0.03 * np.sin(self.pose.head_yaw), -0.1 * size]
            self.canvas.limb(behind + [0, 0.02 * size], tail, (0.026 * size, 0.016 * size), rows)
        elif self.look.hair_style == "bun":
            bun = behind + [0, 0.055 * size]
            self.canvas.limb(bun, bun + [0, 0.004], (0.03 * size, 0.03 * size), rows)

    def bag(self, behind: bool) -> None:
        """A backpack, or a bag at the left hip, if it is on the given side of the trunk."""
        look, yaw = self.look, self.pose.yaw
        if look.bag == "backpack" and (self.facing > 0.25) == behind:
            width = float(np.hypot(0.155 * self.facing, 0.085 * np.sin(yaw)))
            self.box(self.points["back"] + [0, 0.0], (width, 0.21), look.bag_color, pocket=self.facing < 0.25)
        elif look.bag == "shoulder" and (np.sin(yaw) > 0.1) == behind:
            place, _ = view(np.array([0.19, 0.5, -0.02]) * look.stature * [1, 1, 1], yaw)
            width = float(np.hypot(0.07 * self.facing, 0.15 * np.sin(yaw)))
            self.box(place, (width, 0.11), look.bag_color)

    def box(self, centre: np.ndarray, half: tuple[float, float], color: Color, pocket: bool = False) -> None:
        """A soft box with rounded corners, (half width, half height) metres."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        round_ = np.stack([np.cos(angles), np.sin(angles)], 1)
        outline = np.sign(round_) * np.abs(round_) ** 0.5 * half
        rows = np.linspace(1.12, 0.85, 12)[:, None] * np.asarray(color, np.float32)
        corners = centre + np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]) * half
        self.canvas.paint(shaded(rows.astype(np.float32), self.canvas.light), corners, centre + outline)
        if pocket:
            self.canvas.fill(centre + [0, -0.4 * half[1]] + 0.55 * outline, textures.darker(color, 0.72))

    def hull(self, texture: np.ndarray, top: np.ndarray, bottom: np.ndarray, profile: np.ndarray, half: float) -> None:
        """A textured body between two points of its axis, its half width times `profile` (n, 2: place, width)."""
        centres = top + profile[:, :1] * (bottom - top)
        sides = np.stack([profile[:, 1] * half, np.zeros(len(profile))], 1)
        outline = np.concatenate([centres - sides, (centres + sides)[::-1]])
        wide = np.array([half * profile[:, 1].max(), 0.0])
        self.canvas.paint(texture, np.array([top - wide, top + wide, bottom + wide, bottom - wide]), outline)
