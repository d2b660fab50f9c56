"""Persons cut out of scene images, freed of the background and resized (paper Eq. 1): all of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class PersonCrops:
    """The persons of a batch of images. A crop covers every pixel that its box touches, at least one.

    Crops are read straight from the images, on their device and for all persons in one operation, whatever their sizes.
    Background pixels become 0, which is the mean colour of a normalised image.

    Nothing here waits for a GPU: what decides about sizes is computed on the CPU, and what a GPU needs of it is sent.

    Attributes:
        sizes: P times (height, width) in pixels, image after image.
    """

    def __init__(
        self,
        images: Tensor,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        masks: Sequence[Tensor | None],
    ) -> None:
        """
        Args:
            images: (B, C, H, W) normalised and padded.
            boxes: for each image (P_b, 4) xyxy in pixels, best on the CPU: those on a GPU are waited for.
            image_sizes: for each image (height, width) without its padding.
            masks: for each image (P_b, height, width) bool foreground, or None to keep the background.
        """
        counts = [len(b) for b in boxes]
        self._height, self._width = images.shape[-2:]
        self._planes = images.movedim(1, 0).flatten(1)  # (C, B * H * W): pixels by one number
        image = torch.repeat_interleave(torch.tensor(counts), output_size=sum(counts))
        limit = torch.tensor([(width, height) for height, width in image_sizes], dtype=torch.float32)[image]
        corners = torch.cat(list(boxes)).to("cpu", torch.float32)
        first = torch.minimum(corners[:, :2].floor().clamp(min=0), limit - 1)
        end = torch.maximum(torch.minimum(corners[:, 2:].ceil(), limit), first + 1)
        first, length = first.long(), (end - first).long()
        self._image, self._first, self._length = (
            t.to(images.device, non_blocking=True) for t in (image, first, length)
        )
        self._masks = _stack(masks, counts, images).flatten() if any(m is not None for m in masks) else None
        self.sizes: list[tuple[int, int]] = [(h, w) for w, h in length.tolist()]

    def __len__(self) -> int:
        """P."""
        return len(self.sizes)

    def resized(self, size: tuple[int, int]) -> Tensor:
        """All crops resized bilinearly (pixel centres aligned, borders repeated, no anti-aliasing).

        Args:
            size: (height, width) in pixels.

        Returns:
            (P, C, height, width).
        """
        persons = torch.arange(len(self), device=self._image.device)
        top, bottom, down = self._sources(1, size[0])
        left, right, across = self._sources(0, size[1])
        across, down = across[:, None, None], down[:, None, :, None]
        upper = torch.lerp(self._pixels(persons, top, left), self._pixels(persons, top, right), across)
        lower = torch.lerp(self._pixels(persons, bottom, left), self._pixels(persons, bottom, right), across)
        return torch.lerp(upper, lower, down).contiguous()

    def cut(self, persons: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Some crops at their own sizes, each in the top left corner of zeros.

        Args:
            persons: n of 0..P-1.
            size: (height, width) of the result, at least that of each crop.

        Returns:
            (n, C, height, width).
        """
        index = torch.tensor(list(persons), dtype=torch.int64).to(self._image.device, non_blocking=True)
        (columns, in_width), (rows, in_height) = (self._window(index, axis, size[1 - axis]) for axis in (0, 1))
        inside = in_height[:, None, :, None] & in_width[:, None, None]
        return (self._pixels(index, rows, columns) * inside).contiguous()

    def _pixels(self, persons: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Foreground pixels (n, C, h, w) of images at the rows (n, h) and columns (n, w) of each of n persons."""
        place = rows[:, :, None] * self._width + columns[:, None]

        def pick(values: Tensor, area: Tensor) -> Tensor:
            index = place + (area * (self._height * self._width))[:, None, None]
            return values.index_select(-1, index.flatten()).view(*values.shape[:-1], *place.shape)

        pixels = pick(self._planes, self._image[persons])
        if self._masks is not None:
            pixels *= pick(self._masks, persons)
        return pixels.movedim(0, 1)

    def _sources(self, axis: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which two pixels (P, length) of the image each pixel of the result lies between, and the second one's
        weight."""
        steps = torch.arange(length, device=self._image.device) + 0.5
        own = self._length[:, axis, None]
        place = (steps * (own / length) - 0.5).clamp(min=0)
        low = torch.minimum(place.long(), own - 1)
        high, first = torch.minimum(low + 1, own - 1), self._first[:, axis, None]
        return first + low, first + high, place - low

    def _window(self, persons: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
        """The pixels (n, length) of the image from a crop's first on, and which of them belong to it."""
        steps = torch.arange(length, device=self._image.device)
        own = self._length[persons, axis, None]
        return self._first[persons, axis, None] + torch.minimum(steps, own - 1), steps < own


def _stack(masks: Sequence[Tensor | None], counts: Sequence[int], images: Tensor) -> Tensor:
    """Masks of all images, (P, H, W) bool; those of images without any are True everywhere."""
    height, width = images.shape[-2:]
    parts = []
    for mask, count in zip(masks, counts, strict=True):
        if mask is None:
            parts.append(torch.ones(count, height, width, dtype=torch.bool, device=images.device))
        else:
            parts.append(F.pad(mask.to(images.device), (0, width - mask.shape[2], 0, height - mask.shape[1])))
    return torch.cat(parts)
