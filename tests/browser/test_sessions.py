"""Two visitors at once, and what a server must not do."""

import json
import struct
import zlib

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from playwright.sync_api import Locator

from studio_page import done, go, kept, number, ready
from studio_server import called, fetched, uploaded


def test_two_visitors_do_not_see_each_others_pictures_and_each_finds_its_own_again(page, browser, studio):
    outside: list[str] = []
    page.on(
        "request", lambda it: outside.append(it.url) if not it.url.startswith((studio.url, "data:", "blob:")) else None
    )
    page.reload()
    before = kept(studio.folder)
    make_one(page)
    make_one(page)
    assert history(page).count() == 2
    mine = {picture.parent.name for picture in set(kept(studio.folder)) - set(before)}
    assert len(mine) == 1

    other = browser.new_context()
    theirs = other.new_page()
    theirs.set_default_timeout(120_000)
    theirs.goto(studio.url)
    make_one(theirs)
    assert history(theirs).count() == 1
    other.close()

    page.reload()
    ready(page)
    assert history(page).count() == 2
    assert mine.pop() not in page.content()  # the folder's name is nobody's to see
    assert outside == []


def make_one(page) -> None:
    ready(page)
    number(page, "Steps").fill("2")
    go(page)
    done(page)
    page.reload()


def history(page) -> Locator:
    """The visitor's old pictures, once they are shown."""
    ready(page)
    page.get_by_text("History: only you see it").click()
    pictures = page.locator("#history img")
    pictures.first.wait_for()
    return pictures


@pytest.mark.parametrize("path", ["/etc/passwd", "{folder}/log", "{folder}/studio/secret", "../../etc/passwd"])
def test_files_outside_are_not_given(studio, path):
    place = path.format(folder=studio.folder)
    status, body = fetched(f"{studio.url}/gradio_api/file={place}")
    assert status in (403, 404)
    assert b"root:" not in body


def test_pages_of_others_and_other_names_are_refused(studio):
    assert fetched(studio.url, Origin="https://evil.example")[0] == 403
    assert fetched(studio.url, Host="evil.example")[0] == 403
    assert fetched(studio.url)[0] == 200


def test_a_large_upload_is_refused_before_it_is_read(studio):
    kind = "multipart/form-data; boundary=x"
    status, body = fetched(f"{studio.url}/gradio_api/upload", b"x" * (41 * 2**20), Content_Type=kind)
    assert status == 413
    assert b"expected at most" in body


def test_programs_are_told_valid_types_by_which_tools_can_be_called(studio):
    told = json.loads(fetched(f"{studio.url}/gradio_api/info")[1])["named_endpoints"]
    assert {"/generate", "/annotate", "/start_training"} <= told.keys()
    for endpoint in told.values():
        for parameter in endpoint["parameters"]:
            Draft202012Validator.check_schema(parameter["type"])


def bomb() -> bytes:
    """Of 30,000 x 30,000 pixels, in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


MADE = """size => { const made = new DataTransfer();
  made.items.add(new File([new ArrayBuffer(size)], "large.png", { type: "image/png" })); return made }"""
PASTE = "files => document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: files, bubbles: true }))"


def test_a_file_that_is_too_large_is_refused_on_the_page_before_it_is_sent(page, tmp_path):
    sent: list[str] = []
    page.on("request", lambda it: sent.append(it.url) if it.url.partition("?")[0].endswith("/upload") else None)
    ready(page)
    page.get_by_label("Remove Image").first.click()
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    chosen = page.locator("input[type=file]").first
    chosen.set_input_files(large)
    closed(page, "large.png: 200 MB; expected at most 20 MB. Nothing was sent.")
    files = page.evaluate_handle(MADE, 21 * 2**20)
    page.get_by_text("Drop Image Here").first.dispatch_event("drop", {"dataTransfer": files})
    closed(page, "large.png: 21 MB; expected at most 20 MB. Nothing was sent.")
    page.evaluate(PASTE, files)
    closed(page, "large.png: 21 MB; expected at most 20 MB. Nothing was sent.")
    assert sent == []
    Image.new("RGB", (64, 64)).save(small)
    chosen.set_input_files(small)
    ready(page)
    assert len(sent) == 1


def closed(page, words: str) -> None:
    """The message is there, and goes when it is clicked."""
    message = page.get_by_role("alert").filter(has_text=words)
    message.click()
    message.wait_for(state="detached")


def annotated(studio, place: str) -> str:
    """What the endpoint says of a picture at `place`."""
    picture = {"path": place, "meta": {"_type": "gradio.FileData"}}
    return called(studio, "annotate", [picture, "canny", {}])[1]


def test_hostile_pictures_addresses_and_paths_are_refused_with_a_word(studio):
    assert "900000000 pixels" in annotated(studio, uploaded(studio, bomb(), "bomb.png"))
    assert "expected PNG" in annotated(studio, uploaded(studio, b"<svg/>", "drawing.svg"))
    assert "not uploaded here" in annotated(studio, "/etc/passwd")
    assert "addresses are not taken" in annotated(studio, f"{studio.url}/favicon.ico")
    assert "values that cannot be taken" in called(studio, "annotate", [{"path": 5}, "canny", {}])[1]
    assert "Traceback" not in studio.log
