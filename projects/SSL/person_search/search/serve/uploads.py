"""Query pictures that visitors send: decoded with suspicion, kept in memory, never written to a file."""

from __future__ import annotations

import io
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401  (the decoder is registered by its import)

from ...errors import PersonSearchError
from .caching import LimitedCache

# Decoders that photographs need. Pillow's others (PostScript runs a program, PSD, FITS ...) are never reached.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow reads the MPO files of phones as JPEG
_MIN_SIDE = 16
_MAX_SIDE = 3000  # twice what the network sees of a picture; more would only fill the memory
_JPEG_QUALITY = 90


class RequestError(PersonSearchError):
    """Request that cannot be answered; `status` is that of HTTP."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class ShelvedPicture:
    """Query picture and what was found in it.

    Attributes:
        id: random name that nobody can guess.
        name: file name to show, without folders and control characters.
        image: uint8 (H, W, 3) RGB, upright.
        boxes: float32 (N, 4), corners in pixels, best score first.
        scores: float32 (N,).
        embeddings: float32 (N, d), unit length.
        drawn: embeddings of boxes that a visitor drew.
    """

    id: str
    name: str
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    drawn: dict[tuple[float, ...], np.ndarray] = field(default_factory=dict)


class Shelf:
    """Query pictures of this run of the server, the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._pictures: LimitedCache[ShelvedPicture] = LimitedCache(max_bytes, lambda picture: picture.image.nbytes)

    def add(
        self, name: str, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, embeddings: np.ndarray
    ) -> ShelvedPicture:
        """Keeps a picture with its detections."""
        order = np.argsort(-scores, kind="stable")
        picture = ShelvedPicture(
            secrets.token_hex(12), shown_name(name), image, boxes[order], scores[order], embeddings[order]
        )
        self._pictures.put(picture.id, picture)
        return picture

    def get(self, picture_id: str) -> ShelvedPicture:
        """The picture of an id.

        Raises:
            RequestError: there is none (any more).
        """
        picture = self._pictures.get(picture_id)
        if picture is None:
            raise RequestError("this query picture is no longer kept; upload it again", 404)
        return picture

    def clear(self) -> None:
        """Forgets all pictures."""
        self._pictures.clear()


def decode_picture(data: bytes, max_pixels: int) -> np.ndarray:
    """Pixels of an uploaded file, uint8 (H, W, 3) RGB, upright, at most 3000 pixels a side.

    Raises:
        RequestError: no picture of a known format, damaged, too small, or too large to be unpacked.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)  # from the header, before anything is unpacked
            image.draft("RGB", (_MAX_SIDE, _MAX_SIDE))  # a JPEG is unpacked at the size that is needed
            upright = ImageOps.exif_transpose(image)
            upright = _eight_bits(upright).convert("RGB")
            upright.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
            return np.array(upright, order="C")
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(max_pixels) from error
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise RequestError(
            "the file is not a picture that can be read; send a JPEG, PNG, WebP or BMP file", 415
        ) from error


def encode_jpeg(image: np.ndarray, quality: int = _JPEG_QUALITY) -> bytes:
    """JPEG file of pixels, uint8 (H, W, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def shown_name(name: str | None) -> str:
    """File name as it may be shown: no folders, no control or direction characters, at most 80 letters."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    kept = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C").strip()
    return kept[:80] or "picture"


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _too_large(max_pixels)
    if min(size) < _MIN_SIDE:
        raise RequestError(f"the picture has {size[0]} x {size[1]} pixels; at least {_MIN_SIDE} a side are needed")


def _too_large(max_pixels: int) -> RequestError:
    return RequestError(f"the picture has more than {max_pixels / 1e6:.0f} million pixels; send a smaller one", 413)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; Pillow would cut 16-bit greys off at 255 instead of scaling them."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) >> 8).astype(np.uint8))
