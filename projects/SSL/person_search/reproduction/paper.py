"""Figures that the papers report, to stand beside measured ones. None of them is a measurement of this project."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """mAP and top-1 of one row as published, in percent."""

    mAP: float
    top1: float


PRW_ARXIV = "PRW (arXiv text)"
PRW_ICCV = "PRW (ICCV text)"
PRW_OWN = "PRW"
CUHK_ARXIV = "CUHK-SYSU (arXiv text)"
CUHK_OWN = "CUHK-SYSU"

# Where "ICCV text" stands, the method differs as well: see ablations/iccv2023_prw.yaml. Its baseline is trained with
# multi-labels at the fixed threshold 0.7 instead of cluster labels, and its one scale is 154x58.
PUBLISHED: dict[str, dict[str, dict[str, Published]]] = {
    "1": {
        "baseline": {
            PRW_ARXIV: Published(18.8, 67.0), CUHK_ARXIV: Published(80.7, 82.5), PRW_ICCV: Published(13.0, 63.8),
        },
        "dml": {PRW_ARXIV: Published(20.8, 70.8), CUHK_ARXIV: Published(84.5, 86.3), PRW_ICCV: Published(16.8, 66.9)},
        "sl": {PRW_ARXIV: Published(26.2, 76.4), CUHK_ARXIV: Published(86.2, 87.4), PRW_ICCV: Published(27.4, 81.4)},
        "ssl": {PRW_ARXIV: Published(30.7, 80.6), CUHK_ARXIV: Published(87.4, 88.5), PRW_ICCV: Published(33.9, 82.7)},
    },
    "2": {
        "original_scale": {PRW_ICCV: Published(29.4, 79.7)},
        "one_scale": {PRW_ICCV: Published(30.1, 80.2)},
        "multi_scale": {PRW_ICCV: Published(32.5, 81.6)},
        "multi_scale_masked": {PRW_ICCV: Published(33.9, 82.7)},
    },
    "3": {
        "fixed_low": {PRW_ICCV: Published(27.8, 76.1)},
        "fixed_high": {PRW_ICCV: Published(27.4, 81.4)},
        "ssl": {PRW_ICCV: Published(33.9, 82.7)},
    },
    # Each method's own paper, OIM as the later papers quote it.
    "4": {
        "oim": {PRW_OWN: Published(21.3, 49.9), CUHK_OWN: Published(75.5, 78.7)},
        "nae": {PRW_OWN: Published(43.3, 80.9), CUHK_OWN: Published(91.5, 92.4)},
        "seqnet": {PRW_OWN: Published(46.7, 83.4), CUHK_OWN: Published(93.8, 94.6)},
        "cgps": {PRW_OWN: Published(16.2, 68.0), CUHK_OWN: Published(80.0, 82.3)},
        "rsiamnet": {PRW_OWN: Published(21.2, 73.4), CUHK_OWN: Published(86.0, 87.1)},
        "ssl": {PRW_OWN: Published(30.7, 80.6), CUHK_OWN: Published(87.4, 88.5)},
    },
}  # fmt: skip
