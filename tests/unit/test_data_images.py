"""Pictures of every spelling come in the same way; what cannot be read is named."""

import base64
import io
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from foveal.data import MIN_SIDE, load_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_colours(width: int = 40, height: int = 30) -> Image.Image:
    """Red with a blue top left corner, so that turning it shows."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (0, 0, 10, 10))
    return picture


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


@pytest.fixture
def png() -> bytes:
    return encode(two_colours())


def spellings(png: bytes, folder) -> dict:
    path = folder / "corner one.png"
    path.write_bytes(png)
    text = base64.b64encode(png).decode()
    return {
        "pil": two_colours(),
        "path": path,
        "path text": str(path),
        "file url": path.as_uri(),
        "bytes": png,
        "bytearray": bytearray(png),
        "dict of bytes": {"bytes": png, "path": None},
        "dict of path": {"bytes": None, "path": str(path)},
        "dict prefers its bytes": {"bytes": png, "path": "gone.png"},
        "dict of base64": {"bytes": text},
        "dict of url": {"url": path.as_uri()},
        "data uri": f"data:image/png;base64,{text}",
        "base64": text,
        "base64 with line breaks": base64.encodebytes(png).decode(),
    }


def test_every_spelling_gives_the_same_picture(png, tmp_path):
    for name, value in spellings(png, tmp_path).items():
        assert same(load_image(value), two_colours()), name


def test_relative_paths_start_at_the_data_and_not_at_the_working_directory(
    png, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(png)
    monkeypatch.chdir(tmp_path / "here")
    assert same(load_image("a.png", base_dir=tmp_path / "data"), two_colours())
    with pytest.raises(ValueError, match="does not exist"):
        load_image("a.png")


def test_base64_of_a_jpeg_is_not_taken_for_a_path():
    text = base64.b64encode(encode(two_colours(), "JPEG")).decode()
    assert text.startswith("/9j/")
    assert load_image(text).size == (40, 30)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn by 90 degrees clockwise
    turned = load_image(encode(two_colours(), exif=exif))
    assert turned.size == (30, 40)
    assert turned.getpixel((29, 0)) == BLUE
    assert turned.getpixel((0, 0)) == RED


def test_transparent_becomes_white_and_not_black():
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    clear.paste((255, 0, 0, 128), (0, 0, 15, 30))
    loaded = load_image(encode(clear))
    assert loaded.mode == "RGB"
    assert loaded.getpixel((20, 5)) == WHITE
    assert loaded.getpixel((5, 5)) == (255, 127, 127)


def test_transparent_palette_entry_becomes_white():
    palette = Image.new("P", (30, 30), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (0, 0, 10, 10))
    loaded = load_image(encode(palette, transparency=0))
    assert loaded.getpixel((20, 20)) == WHITE
    assert loaded.getpixel((5, 5)) == RED


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    picture = Image.new("L", (30, 30), 255).convert(mode)
    assert same(load_image(picture), Image.new("RGB", (30, 30), WHITE))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bit_grey_is_scaled_and_not_clipped_to_white(mode):
    # 0x8000 of 0xffff is half way: 128 of 255.
    loaded = load_image(Image.new(mode, (30, 30), 0x8000))
    assert loaded.getpixel((0, 0)) == (128, 128, 128)


def test_the_users_picture_is_not_changed_and_not_shared():
    given = two_colours()
    loaded = load_image(given)
    loaded.paste(WHITE, (0, 0, 40, 30))
    assert same(given, two_colours())


@pytest.mark.parametrize("size", [(27, 100), (100, 27)])
def test_short_side_is_named(size):
    with pytest.raises(ValueError, match=rf"row 7: .* {size[0]} x {size[1]} pixels.*{MIN_SIDE}"):
        load_image(Image.new("RGB", size), row=7)
    assert load_image(Image.new("RGB", (28, 28))).size == (28, 28)


def failing(tmp_path, png) -> dict[str, tuple]:
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "none.png").write_bytes(b"")
    return {
        "no picture": (str(tmp_path / "text.png"), "text.png.* cannot be read.*Replace"),
        "cut off": (png[: len(png) // 2], r"<\d+ bytes> cannot be read"),
        "empty file": (tmp_path / "none.png", "none.png.*zero bytes"),
        "empty bytes": (b"", "<0 bytes> has zero bytes"),
        "missing": ("gone/cat.png", "'gone/cat.png'.*gone/cat.png.*does not exist.*Correct"),
        "missing by url": ((tmp_path / "no.png").as_uri(), "does not exist"),
        "a folder": (tmp_path, "does not exist"),
        "zero size": (Image.new("RGB", (0, 40)), r"is empty \(0 x 40"),
        "unset dict": ({"bytes": None, "path": None}, r"\['bytes', 'path'\] and none"),
        "bad data uri": ("data:image/png;base64,@@@", "damaged base64"),
        "data uri, no comma": ("data:image/png", "without a comma"),
        "float pixels": (Image.new("F", (30, 30)), "floating-point"),
        "32 bits": (Image.new("I", (30, 30), 70_000), "32-bit pixels from 70000 to 70000"),
        "dead address": ("http://127.0.0.1:9/a.png", "127.0.0.1:9/a.png.*could not be downloaded"),
        "bad address": ("http://[/a.png", "could not be downloaded"),
    }


def test_each_unreadable_picture_is_one_message_with_row_value_and_remedy(
    tmp_path, png, monkeypatch
):
    monkeypatch.setenv("no_proxy", "*")
    for name, (value, expected) in failing(tmp_path, png).items():
        with pytest.raises(ValueError) as caught:
            load_image(value, row=12)
        message = str(caught.value)
        assert message.startswith("row 12: picture "), (name, message)
        assert re.search(expected, message), (name, message)
        assert "\n" not in message, name
        assert len(message) < 500, name


@pytest.mark.parametrize("value", [3, 2.5, object(), ["a.png"], None])
def test_unknown_type_is_named(value):
    with pytest.raises(TypeError, match=rf"row 3: .*{type(value).__name__}\. Give a PIL image"):
        load_image(value, row=3)


class _Server(BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/a.png"
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(encode(two_colours()))

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_picture_is_downloaded(address):
    assert same(load_image(f"{address}/a.png"), two_colours())


def test_http_error_names_address_and_status(address):
    with pytest.raises(ValueError, match=rf"row 4: .*{address}/b\.png.*404.*download"):
        load_image(f"{address}/b.png", row=4)


def test_importing_data_loads_no_heavy_library():
    code = (
        "import sys, foveal.data; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
