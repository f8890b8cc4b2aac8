"""One editor on a page of its own, served by Gradio and shown by Chromium; it lies in a tab that is hidden at first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from playwright.sync_api import Browser, Locator, Page

SIZE = (320, 256)  # of the canvas, pixels
PATIENCE = 60_000  # milliseconds, on a machine that does much else

Point = tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """An editor, and the values that Python has had of it."""

    page: Page
    read_values: list[Any]
    changes: list[Any]
    """What `.change` has told."""
    inputs: list[Any]
    """What `.input` has told."""
    to_send: list[Any]
    hosts: set[str]
    """Of all that the page has asked for."""

    @property
    def canvas(self) -> Locator:
        return self.page.locator(".stage canvas:visible").first

    @property
    def status(self) -> str:
        return self.page.locator(".status:visible").first.inner_text()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name).first.click()

    def read(self) -> Any:
        """The value that Python has when it asks now."""
        before = len(self.read_values)
        self.page.get_by_role("button", name="read").dispatch_event("click")  # which leaves the focus where it is
        self.wait(lambda: len(self.read_values) > before)
        return self.read_values[-1]

    def value_after(self, act: Callable[[], object]) -> Any:
        """The value once `act` has changed it."""
        before = self.read()
        act()
        self.wait(lambda: self.read() != before)
        return self.read_values[-1]

    def send(self, value: Any) -> None:
        """Set the value in Python, as an annotator's result would be."""
        self.to_send.append(value)
        self.page.get_by_role("button", name="send").dispatch_event("click")
        self.wait(lambda: without_background(self.read()) == without_background(value))

    def wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE / 1000
        while not is_so():
            assert time.monotonic() < deadline, f"waited in vain; the editor says {self.status!r}"
            self.page.wait_for_timeout(20)

    def place(self, size: tuple[int, int] = SIZE) -> tuple[float, float, float]:
        """Where a whole picture of this size is on the screen: left, top, and screen pixels to a picture's pixel."""
        box = self.canvas.bounding_box()
        assert box
        scale = min(box["width"] / size[0], box["height"] / size[1])
        left = box["x"] + (box["width"] - size[0] * scale) / 2
        return left, box["y"] + (box["height"] - size[1] * scale) / 2, scale

    def on_screen(self, point: Point) -> Point:
        """A point of the picture on the screen, at a whole pixel there."""
        left, top, scale = self.place()
        return round(left + point[0] * scale), round(top + point[1] * scale)

    def in_picture(self, point: Point) -> Point:
        left, top, scale = self.place()
        return (point[0] - left) / scale, (point[1] - top) / scale

    def click(self, point: Point) -> None:
        self.page.mouse.click(*self.on_screen(point))

    def drag(self, *points: Point) -> list[Point]:
        """Draw through points of the picture; where the pointer was indeed, which is at whole pixels of the screen."""
        screen = [self.on_screen(point) for point in points]
        self.page.mouse.move(*screen[0])
        self.page.mouse.down()
        for point in screen[1:]:
            self.page.mouse.move(*point)
        self.page.mouse.up()
        return [self.in_picture(point) for point in screen]

    def touch(self, *fingers: list[Point]) -> None:
        """Fingers that go down one after the other, move together, and are lifted."""
        session = self.page.context.new_cdp_session(self.page)
        paths = [[self.on_screen(point) for point in finger] for finger in fingers]

        def tell(kind: str, points: list[Point]) -> None:
            touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        for count in range(1, len(paths) + 1):
            tell("touchStart", [path[0] for path in paths[:count]])
        for points in zip(*(path[1:] for path in paths), strict=True):
            tell("touchMove", list(points))
        tell("touchEnd", [])


@contextmanager
def shown(browser: Browser, make: Callable[..., gr.HTML], **options: Any) -> Iterator[Shown]:
    """The editor that `make` makes, on a canvas of SIZE, in a browser with a touch screen."""
    lists: tuple[list[Any], ...] = ([], [], [], [])
    read_values, changes, inputs, to_send = lists
    hosts: set[str] = set()
    with gr.Blocks(analytics_enabled=False) as app:
        gr.Tab("first")
        with gr.Tab("second"):
            editor = make("Editor", width=SIZE[0], height=SIZE[1], **options)
            gr.Button("send").click(to_send.pop, outputs=editor, queue=False, trigger_mode="multiple")
            gr.Button("read").click(read_values.append, editor, queue=False, trigger_mode="multiple")
        editor.change(changes.append, editor)
        editor.input(inputs.append, editor)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, max_file_size="25mb")
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, has_touch=True, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "here"))
    page.goto(url)
    page.get_by_role("tab", name="second").click()
    one = Shown(page, *lists, hosts)
    one.canvas.wait_for()
    yield one
    context.close()
    app.close()


def without_background(value: Any) -> Any:
    return value and {key: each for key, each in value.items() if key != "background"}


def empty(one: Shown) -> Shown:
    """The same, cleared, and the whole picture in view."""
    one.press("Clear")
    one.press("Whole picture")
    return one
