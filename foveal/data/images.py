"""Whatever a data set calls a picture -> one upright RGB ``PIL.Image``.

``load_image`` is the only way pictures come in. It never guesses: what it cannot read is an error
that names the row, the value and what to do about it.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import os
import struct
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

__all__ = [
    "MAX_DOWNLOAD_BYTES",
    "MIN_SIDE",
    "URL_TIMEOUT_SECONDS",
    "PictureError",
    "load_image",
    "stored_picture",
]

MIN_SIDE = 28
"""Shortest side in pixels: one merged patch of Qwen2.5-VL (14 px, merged 2 by 2)."""
URL_TIMEOUT_SECONDS = 20.0
MAX_DOWNLOAD_BYTES = 100 * 2**20

_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
# What Pillow raises on damaged files, beside OSError: broken PNG chunks, EXIF and TIFF tables.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_ACCEPTED = (
    "a PIL image, a path, a file:// or http(s):// URL, raw bytes, {'bytes': .., 'path': ..}, "
    "a data: URI or base64 text"
)


def load_image(
    value: Any, *, row: int | None = None, base_dir: str | os.PathLike[str] | None = None
) -> Image.Image:
    """Reads one picture, turns it upright (EXIF) and returns it as RGB on white.

    Args:
        value: a PIL image, a path, a ``file://`` or ``http(s)://`` URL, raw bytes, the dict
            ``{"bytes", "path"}`` of the datasets library, a ``data:`` URI, or bare base64.
        row: row number, for the error messages.
        base_dir: folder that relative paths start from; the working directory if None.

    Returns:
        A new RGB image whose sides are both at least ``MIN_SIDE`` pixels. 16-bit grey is scaled
        to 8 bits; the first frame is taken of an animation.

    Raises:
        TypeError: ``value`` is of no accepted type.
        PictureError: a ValueError: the picture is missing, unreadable, empty or too small.
    """
    where = _Where(row, _shorten(value))
    source = _find(value, where, base_dir)
    try:
        opened = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        _check_size(opened, where)
        opened.load()
        picture = _to_rgb(ImageOps.exif_transpose(opened), where)
    except PictureError:
        raise
    except _DAMAGE as error:
        raise where.rejects(
            f"cannot be read as a picture ({type(error).__name__}: {error})",
            "Replace the file, or drop the row",
        ) from error
    return picture


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture as it lies in the data, before it is made upright and RGB."""

    format: str
    """Such as "PNG"; "memory" for a PIL image that was never a file."""
    mode: str
    """Pillow's, such as "RGBA"."""


def stored_picture(
    value: Any, base_dir: str | os.PathLike[str] | None = None
) -> StoredPicture | None:
    """How a picture is stored, without decoding it.

    Args:
        value: as for ``load_image``.
        base_dir: as for ``load_image``.

    Returns:
        None for what would have to be downloaded, or cannot be read as a picture.
    """
    if isinstance(value, str) and value[:8].lower().startswith(("http://", "https://")):
        return None
    try:
        source = _find(value, _Where(None, ""), base_dir)
        opened = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
    except (*_DAMAGE, TypeError):
        return None
    return StoredPicture(opened.format or "memory", opened.mode)


class PictureError(ValueError):
    """A picture is missing or unusable. Told apart from what Pillow raises on damaged files."""

    missing = False
    """Whether there is no such file."""


class _Where:
    """Which row and which value: the frame of every error message here."""

    def __init__(self, row: int | None, value: str) -> None:
        self.prefix = "" if row is None else f"row {row}: "
        self.value = value

    def rejects(self, fault: str, remedy: str) -> PictureError:
        return PictureError(f"{self.prefix}picture {self.value} {fault}. {remedy}.")


def _find(value: Any, where: _Where, base_dir: Any) -> bytes | Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _not_empty(bytes(value), where)
    if isinstance(value, Mapping):
        return _from_mapping(value, where, base_dir)
    if isinstance(value, os.PathLike):
        return _from_path(Path(value), where, base_dir)
    if isinstance(value, str):
        return _from_text(value, where, base_dir)
    raise TypeError(
        f"{where.prefix}a picture cannot be read from {where.value} of type "
        f"{type(value).__name__}. Give {_ACCEPTED}."
    )


def _from_mapping(value: Mapping[str, Any], where: _Where, base_dir: Any) -> bytes | Image.Image:
    for key in ("bytes", "image", "url", "path"):
        if value.get(key) is not None:
            return _find(value[key], where, base_dir)
    raise where.rejects(
        f"is a dict with the keys {sorted(map(str, value))} and none of 'bytes' and 'path' is set",
        "Fill one of the two",
    )


def _from_text(value: str, where: _Where, base_dir: Any) -> bytes:
    scheme = value[:8].lower()
    if scheme.startswith("data:"):
        return _from_data_uri(value, where)
    if scheme.startswith(("http://", "https://")):
        return _not_empty(_download(value, where), where)
    if scheme.startswith("file://"):
        local = urllib.request.url2pathname(urllib.parse.urlsplit(value).path)
        return _from_path(Path(local), where, base_dir)
    path = Path(base_dir or ".", os.path.expanduser(value))
    if not os.path.isfile(path):
        decoded = _decode_base64(value)
        # Base64 and paths share an alphabet ("/9j/..." is every JPEG): believe the content.
        if decoded is not None and (decoded.startswith(_SIGNATURES) or len(value) > 255):
            return decoded
    return _from_path(path, where, None)


def _from_path(path: Path, where: _Where, base_dir: Any) -> bytes:
    path = Path(base_dir or ".", os.path.expanduser(path))
    if not os.path.isfile(path):
        error = where.rejects(
            f"was looked for as the file {_shorten(path.absolute())}, which does not exist",
            "Correct the path (relative paths start at the folder of the data file), or drop "
            "the row",
        )
        error.missing = True
        raise error
    try:
        return _not_empty(path.read_bytes(), where)
    except OSError as error:
        raise where.rejects(
            f"cannot be opened ({type(error).__name__}: {error})", "Check the file's permissions"
        ) from error


def _from_data_uri(value: str, where: _Where) -> bytes:
    head, comma, payload = value.partition(",")
    if not comma:
        raise where.rejects("is a data: URI without a comma", "Write data:image/png;base64,<data>")
    if not head.lower().endswith(";base64"):
        return _not_empty(urllib.parse.unquote_to_bytes(payload), where)
    decoded = _decode_base64(urllib.parse.unquote(payload))
    if decoded is None:
        raise where.rejects("is a data: URI with damaged base64", "Encode the picture again")
    return _not_empty(decoded, where)


def _decode_base64(text: str) -> bytes | None:
    compact = "".join(text.split())
    try:
        return base64.b64decode(compact, validate=True)
    except (binascii.Error, ValueError):
        return None


def _download(url: str, where: _Where) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "foveal"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise where.rejects(
            f"could not be downloaded ({type(error).__name__}: {error})",
            "Check the address and the network, or download the pictures first and give paths",
        ) from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise where.rejects(
            f"is larger than {MAX_DOWNLOAD_BYTES // 2**20} MiB", "Download it first and shrink it"
        )
    return data


def _not_empty(data: bytes, where: _Where) -> bytes:
    if not data:
        raise where.rejects("has zero bytes", "Replace the file, or drop the row")
    return data


def _check_size(picture: Image.Image, where: _Where) -> None:
    width, height = picture.size
    if min(width, height) == 0:
        raise where.rejects(f"is empty ({width} x {height} pixels)", "Drop the row")
    if min(width, height) < MIN_SIDE:
        raise where.rejects(
            f"is {width} x {height} pixels, and each side must be at least {MIN_SIDE}",
            "Enlarge or pad the picture, or drop the row",
        )


def _to_rgb(picture: Image.Image, where: _Where) -> Image.Image:
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_16_bit(picture.convert("I"), where)
    if picture.mode == "F":
        raise where.rejects("holds floating-point pixels", "Convert it to 8 bits a channel")
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image, where: _Where) -> Image.Image:
    # Pillow would clip at 255 and hand back a white picture.
    low, high = picture.getextrema()
    if low < 0 or high > 65535:  # pyright: ignore[reportOperatorIssue]
        raise where.rejects(
            f"holds 32-bit pixels from {low} to {high}", "Convert it to 8 bits a channel"
        )
    return picture.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")


def _shorten(value: Any, length: int = 80) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Image.Image):
        return f"<{type(value).__name__} {value.mode} {value.size[0]} x {value.size[1]}>"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {_shorten(item, 40)}" for key, item in value.items())
        return "{" + inside + "}"
    text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if len(text) <= length:
        return text
    # The end of a path says more than its beginning.
    return f"{text[: length // 3]}...{text[length // 3 + 3 - length :]}"
