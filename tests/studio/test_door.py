"""Who may come in, and with what."""

import struct
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from controlnet.errors import UserError
from controlnet.studio.guard import Guard, refused
from controlnet.studio.offer import Offer, chosen
from controlnet.studio.parts import read_payload
from controlnet.studio.server import Door

GUARD = Guard(None, is_local=True, largest_body=1000)
HERE = "127.0.0.1:7860"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int) -> bytes:
    """Small, whatever size it says it has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def payload(tmp_path, data: bytes, name: str = "picture.png"):
    path = tmp_path / "upload"
    path.write_bytes(data)
    return SimpleNamespace(path=str(path), url=None, orig_name=name)


@pytest.mark.parametrize(
    ("host", "options", "told"),
    [
        ("0.0.0.0", {}, "--host 0.0.0.0 lets others in; give --auth"),
        ("192.168.1.7", {}, "--host 192.168.1.7 lets others in"),
        ("127.0.0.1", {"share": True}, "--share lets others in"),
        ("127.0.0.1", {"auth": ["nobody"]}, "expected USER:PASSWORD"),
        ("127.0.0.1", {"port": 0}, "--port 0; expected 1 to 65535"),
        ("127.0.0.1", {"auth": ["@/nowhere/at/all"]}, "no such file"),
    ],
)
def test_nobody_is_let_in_by_mistake(host, options, told):
    with pytest.raises(UserError, match=told):
        door(host, **options)


def door(host: str, **options) -> Door:
    return Door.of(
        **{"host": host, "port": 7860, "share": False, "auth": (), "open_to_all": False, "mcp": False} | options
    )


def test_others_come_in_with_a_password_or_where_it_is_said(tmp_path):
    users = tmp_path / "users"
    users.write_text("ann:one two\nbob:a:b\n\n")
    assert door("0.0.0.0", auth=[f"@{users}", "eve:x"]).users == (("ann", "one two"), ("bob", "a:b"), ("eve", "x"))
    assert door("0.0.0.0", open_to_all=True).users == ()
    assert door("localhost").users == ()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": HERE}, None),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, None),
        ({"host": "[::1]:7860"}, None),
        ({"host": HERE, "origin": "https://evil.example"}, 403),
        ({"host": HERE, "origin": "null"}, 403),
        ({"host": HERE, "origin": "http://127.0.0.1:8000"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({}, 403),
        ({"host": HERE, "content-length": "1000"}, None),
        ({"host": HERE, "content-length": "1001"}, 413),
        ({"host": HERE, "content-length": "-5"}, 413),
        ({"host": HERE, "content-length": "many"}, 413),
    ],
)
def test_requests_of_other_pages_other_names_and_too_large_ones_are_refused(headers, status):
    found = refused(headers, GUARD)
    assert (found and found[0]) == status


def test_under_an_address_for_others_any_name_will_do_but_no_other_page():
    guard = Guard(None, is_local=False, largest_body=1000)
    assert refused({"host": "studio.example"}, guard) is None
    assert refused({"host": "studio.example", "origin": "https://evil.example"}, guard)[0] == 403


@pytest.mark.parametrize(
    ("data", "name", "told"),
    [
        (png_of(30_000, 30_000), "huge.png", "huge.png: broken header .Image size .900000000 pixels. exceeds"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg", "a.svg: no picture that can be read; expected PNG"),
        (b"GIF89a" + bytes(100), "a.gif", "a.gif: no picture that can be read"),
        (png_of(6_000, 5_000), "large.png", "large.png: 6000x5000 pixels are more than 24,000,000"),
        (png_of(64, 64), "short.png", "short.png: broken picture"),
        (b"", "empty.png", "empty.png: no picture that can be read"),
        (png_of(1, 4000), "strip.png", "strip.png: 1x4000 pixels; expected sides of at least 2"),
    ],
)
def test_hostile_pictures_get_a_clear_word(tmp_path, data, name, told):
    with pytest.raises(UserError, match=told):
        read_payload(payload(tmp_path, data, name))


def test_a_picture_comes_in_with_its_orientation_and_alpha(tmp_path):
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert read_payload(payload(tmp_path, buffer.getvalue())).shape == (40, 20, 3)
    buffer = BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(buffer, "PNG")
    assert read_payload(payload(tmp_path, buffer.getvalue())).shape == (8, 8, 4)
    assert read_payload(None) is None


def test_things_of_one_name_get_numbers_and_nothing_else_can_be_chosen(tmp_path):
    first, second = tmp_path / "a" / "canny", tmp_path / "b" / "canny"
    for folder in (first, second):
        (folder).mkdir(parents=True)
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "ink.safetensors").write_bytes(b"")
    offer = Offer.of(["embedded"], ["circle"], [], loras, None, tmp_path / "out", "cpu", "float32")
    assert list(offer.controls) == ["circle"]
    assert list(offer.loras) == ["ink"]
    with pytest.raises(UserError, match="LoRA /etc/passwd; expected one of: ink"):
        chosen("LoRA", "/etc/passwd", offer.loras)


def test_all_that_is_not_there_is_told_at_the_start(tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError) as told:
        Offer.of(["embedded"], [str(nowhere)], [nowhere], nowhere, nowhere, tmp_path, "cpu", "float32")
    for word in ("control", "--run", "--lora", "--data"):
        assert word in str(told.value)
