"""Processed pictures of late, up to a number of bytes.

A picture that comes again (another question about it, the next pass over a small set, another
evaluation) is not resized, normalised and hashed again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from foveal.types import ImageInput

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_CACHE_BYTES", "PictureCache"]

DEFAULT_CACHE_BYTES = 512 * 2**20
"""Some 30 pictures of 840 x 840 pixels: processed, they are float32 and take 17 MB each."""


class PictureCache:
    """Least recently used first out; never more than ``max_bytes`` of pixels.

    Args:
        max_bytes: 0 keeps nothing.

    Raises:
        ValueError: for a negative bound.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(
                f"the bound of the picture cache is {max_bytes} bytes; 0 keeps nothing"
            )
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, ImageInput] = OrderedDict()

    def key(self, picture: Image.Image, settings: str) -> str:
        """Name of a picture under the settings of an image processor."""
        seen = hashlib.sha256(f"{picture.size} {picture.mode} {settings}".encode())
        seen.update(picture.tobytes())
        return seen.hexdigest()

    def get(self, key: str) -> ImageInput | None:
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: str, image: ImageInput) -> None:
        """Keep a picture, and let go of the oldest ones that it leaves no room for."""
        size = _size(image)
        if key in self._kept or size > self.max_bytes:
            return
        pixels = image.pixel_values
        if pixels.untyped_storage().nbytes() > size:
            # A part of a larger tensor, which would stay alive as a whole.
            image = replace(image, pixel_values=pixels.clone())
        self._kept[key] = image
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _size(oldest)


def _size(image: ImageInput) -> int:
    return image.pixel_values.nelement() * image.pixel_values.element_size()
