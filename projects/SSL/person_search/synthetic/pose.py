"""Articulated poses: joints of a walking or standing person in metres, and their projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .looks import Look

# Lengths and heights as fractions of the stature, after common anthropometric tables.
HIP_HEIGHT, SHOULDER_HEIGHT, HEAD_HEIGHT = 0.53, 0.815, 0.922
HIP_HALF_WIDTH, SHOULDER_HALF_WIDTH, BODY_HALF_DEPTH = 0.054, 0.112, 0.074
THIGH, SHIN, UPPER_ARM, FOREARM, FOOT = 0.245, 0.24, 0.17, 0.14, 0.085


@dataclass(frozen=True)
class Pose:
    """Posture of a person, with angles in radians.

    Attributes:
        yaw: direction of the body; 0 faces the camera, pi/2 walks to the right of the image, pi shows the back.
        head_yaw: direction of the head.
        phase: phase of the walking cycle, 0..2 pi.
        stride: amplitude of the thighs' swing; about 0.08 stands, 0.5 walks fast.
        raised_arm: bend of the right elbow towards the face (a telephone), 0 for none.
    """

    yaw: float
    head_yaw: float
    phase: float
    stride: float
    raised_arm: float


def sample_pose(rng: np.random.Generator) -> Pose:
    """A pose: any direction, four in five persons walk, one in eight holds a telephone."""
    yaw = rng.uniform(-np.pi, np.pi)
    stride = rng.uniform(0.25, 0.52) if rng.random() < 0.8 else rng.uniform(0.02, 0.12)
    raised = rng.uniform(1.9, 2.3) if rng.random() < 0.125 else 0.0
    return Pose(yaw, yaw + rng.normal(0, 0.3), rng.uniform(0, 2 * np.pi), stride, raised)


def joints(pose: Pose, look: Look) -> dict[str, np.ndarray]:
    """Joints of the body in its own coordinate system.

    Returns:
        (3,) float64 metres by name: towards the body's left, upwards from the ground, forwards. The lower ankle is at
        its standing height, so the person touches the ground.
    """
    stature, points = look.stature, {}
    hip_half, shoulder_half = HIP_HALF_WIDTH * look.build, SHOULDER_HALF_WIDTH * look.build
    lean = 0.09 * pose.stride
    for side, sign, phase in (("left", 1.0, pose.phase), ("right", -1.0, pose.phase + np.pi)):
        swing = pose.stride * np.sin(phase)
        # The knee bends most while the leg swings forwards, that is, while the thigh's angle increases.
        bend = 0.06 + 1.5 * pose.stride * max(0.0, np.cos(phase)) ** 2
        hip = np.array([sign * hip_half, HIP_HEIGHT, 0.0])
        knee = hip + THIGH * _down(swing)
        ankle = knee + SHIN * _down(swing - bend)
        toe = ankle + FOOT * _down(swing - bend + np.pi / 2 - 0.12)
        shoulder = np.array([sign * shoulder_half, SHOULDER_HEIGHT - 0.012, lean])
        arm = -0.8 * swing
        raised = pose.raised_arm if side == "right" else 0.0
        spread = np.array([sign * 0.018, 0.0, 0.0])
        elbow = shoulder + UPPER_ARM * _down(arm + 0.2 * raised) + spread * (1 - 0.4 * raised)
        wrist = elbow + FOREARM * _down(arm + 0.15 + 0.7 * pose.stride + 1.15 * raised) + 0.3 * spread
        for name, point in (("hip", hip), ("knee", knee), ("ankle", ankle), ("toe", toe)):
            points[f"{side}_{name}"] = point
        for name, point in (("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist)):
            points[f"{side}_{name}"] = point
    points["neck"] = np.array([0.0, 0.84, lean])
    points["head"] = np.array([0.0, HEAD_HEIGHT, lean + 0.012])
    points["pelvis"] = np.array([0.0, HIP_HEIGHT - 0.03, 0.0])
    points["back"] = np.array([0.0, 0.70, lean - 0.115])
    sole = min(points["left_ankle"][1], points["right_ankle"][1]) - 0.04
    return {name: stature * (point - np.array([0.0, sole, 0.0])) for name, point in points.items()}


def _down(angle: float) -> np.ndarray:
    """Unit vector that points down at 0 and forwards at pi/2."""
    return np.array([0.0, -np.cos(angle), np.sin(angle)])


def view(point: np.ndarray, yaw: float) -> tuple[np.ndarray, float]:
    """Position (right, up) in metres of a body point as seen by the camera, and its depth towards the camera."""
    left, up, forward = point
    return np.array([left * np.cos(yaw) + forward * np.sin(yaw), up]), float(forward * np.cos(yaw) - left * np.sin(yaw))
