"""Record a map, and draw the pictures of the live view: python docs/figures/live_animation.py

The script runs a map of 32 tasks on eight workers, two of which sleep. It takes a snapshot five times a
second, and writes these files next to itself:

    live.webp           the map in a browser, as an animation that repeats
    live.png            its last frame, for readers who prefer no motion
    live-light.png      the page of the browser in light colours
    live-dark.png       the page of the browser in dark colours
    live-terminal.svg   the terminal
    live-notebook.svg   the output of a notebook cell

The run times are random, so each run draws other pictures. The script needs the extras `live`, `plot` and
`test`, and Debian's Chromium with its driver. It takes about a minute.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from selenium import webdriver

import polarmap
from polarmap.live.activation import activate
from polarmap.live.html_export import render_html
from polarmap.live.snapshots import ProgramSnapshot
from polarmap.live.svg import render_program_svg
from polarmap.live.terminal import render_program
from polarmap.testing import Fault, FaultyExecutor

HERE = Path(__file__).parent
PROGRAM_NAME, HOST_NAME = "multiply.py", "laptop"

BLOCKS, TASKS, WORKERS, SLEEPING_TASKS = 24, 32, 8, (3, 12)
MIN_TASK_SECONDS, MAX_TASK_SECONDS = 0.7, 1.4
SNAPSHOT_INTERVAL = 0.2  # seconds
LAST_FRAME_SECONDS = 2.5

CARD_WIDTH = 520  # of the page in the animation, in CSS pixels
# In the animation, squares and timeline are side by side, and text of another length moves nothing else.
CARD_STYLE = """
.figures { grid-template-columns: minmax(0, 9fr) minmax(0, 10fr); gap: 1rem; margin-top: 0.5rem; }
.figure-title { min-height: 2lh; }
.status { font-size: 1rem; white-space: nowrap; }
.facts { min-height: 2lh; }
.counts { min-height: 3.5lh; align-content: start; }
.card { margin: 0; }
"""
PAGE_WIDTH = 880  # of the still pictures, in CSS pixels
TERMINAL_COLUMNS, TERMINAL_LINES = 64, 30
TERMINAL_WIDTH = 590  # of the picture of the terminal, in CSS pixels
# The connection of a saved page is not live, and its legend is closed. Neither is of interest in a picture.
HIDDEN_STYLE = "#connection, .legend { display: none; }"
# Adds a style sheet, and returns the position of an element once the page has been drawn again.
PREPARE_PAGE = """
const [selector, style, finish] = arguments;
const sheet = new CSSStyleSheet();
sheet.replaceSync(style);
document.adoptedStyleSheets = [sheet];
dispatchEvent(new Event("resize"));
requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(() => {
  const box = document.querySelector(selector).getBoundingClientRect();
  finish([box.x, box.y, box.width, box.height]);
})));
"""
MAX_ANIMATION_BYTES, MAX_PICTURE_BYTES = 500_000, 150_000


# --- the map -----------------------------------------------------------------------------------


def multiply(block: Any) -> Any:
    """Return the product of a block and a vector after a random time."""
    seconds = np.random.default_rng().uniform(MIN_TASK_SECONDS, MAX_TASK_SECONDS)
    time.sleep(seconds)
    return block @ np.ones(block.shape[1])


def record_map() -> list[ProgramSnapshot]:
    """Run a map on a pool, and return snapshots of the program from the start of the map to its end."""
    data = np.random.default_rng(0).standard_normal((2_400, 400))
    with polarmap.Pool(workers=WORKERS) as pool, ThreadPoolExecutor(1) as thread:
        # An earlier map starts the workers, and checks that the function is linear.
        polarmap.coded_map(multiply, data, blocks=BLOCKS, tasks=TASKS, executor=pool)
        time.sleep(3 * MAX_TASK_SECONDS)  # until all workers are idle
        hub = activate()
        faults = {task: Fault("sleep", seconds=60) for task in SLEEPING_TASKS}
        executor = FaultyExecutor(pool, faults)
        future = thread.submit(
            polarmap.coded_map, multiply, data, blocks=BLOCKS, tasks=TASKS, executor=executor
        )
        snapshots = []
        while not future.done():
            snapshots.append(hub.take_snapshot())
            time.sleep(SNAPSHOT_INTERVAL)
        print(future.result().report)
        snapshots.append(hub.take_snapshot(is_final=True))
    # The names of this machine and of this script do not belong in the pictures.
    named = [replace(snapshot, name=PROGRAM_NAME, host=HOST_NAME) for snapshot in snapshots]
    return [snapshot for snapshot in named if snapshot.maps]


def choose_still(snapshots: list[ProgramSnapshot]) -> ProgramSnapshot:
    """Return the first snapshot in which two thirds of the results have arrived, or the last one."""
    return next((one for one in snapshots if one.maps[-1].n_arrived >= BLOCKS * 2 // 3), snapshots[-1])


# --- the browser -------------------------------------------------------------------------------


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile of its own, and end it."""
    profile = tempfile.mkdtemp(prefix="chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


class Photographer:
    """Takes pictures of the page of the dashboard.

    Parameters
    ----------
    driver : selenium.webdriver.Chrome
        The browser.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def photograph(
        self,
        snapshot: ProgramSnapshot,
        width: int,
        scale: float,
        selector: str,
        style: str = "",
        is_dark: bool = False,
    ) -> Image.Image:
        """Return a picture of the first element of the page that matches a CSS selector, with a margin.

        Parameters
        ----------
        snapshot : ProgramSnapshot
            The program that the page shows.
        width : int
            The width of the page in CSS pixels.
        scale : float
            The number of pixels of the picture per CSS pixel.
        selector : str
            The CSS selector of the element.
        style : str
            A style sheet that is added to the page.
        is_dark : bool
            Whether the page has dark colours.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
            file.write(render_html(snapshot))
            file.flush()
            size = {"width": width, "height": 1200, "deviceScaleFactor": scale, "mobile": False}
            scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
            still = {"name": "prefers-reduced-motion", "value": "reduce"}
            self._command("Emulation.setDeviceMetricsOverride", **size)
            self._command("Emulation.setEmulatedMedia", features=[scheme, still])
            self._driver.get(Path(file.name).as_uri())
            box = self._driver.execute_async_script(PREPARE_PAGE, selector, HIDDEN_STYLE + style)
        margin = 0 if selector == "body" else 8
        x, y, box_width, box_height = box
        clip = {
            "x": x - margin,
            "y": y - margin,
            "width": box_width + 2 * margin,
            "height": box_height + 2 * margin,
            "scale": 1,
        }
        reply = self._command("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(reply["data"]))).convert("RGB")

    def _command(self, name: str, **parameters: Any) -> dict[str, Any]:
        return dict(self._driver.execute_cdp_cmd(name, parameters) or {})


def draw_animation(photographer: Photographer, snapshots: list[ProgramSnapshot], path: Path) -> None:
    """Write an animation of the map, which takes as long as the map did, and its last frame."""
    frames = [
        photographer.photograph(snapshot, CARD_WIDTH, 2, "#maps .card", CARD_STYLE) for snapshot in snapshots
    ]
    size = frames[0].width, max(frame.height for frame in frames)
    padded = [Image.new("RGB", size, frame.getpixel((0, 0))) for frame in frames]
    for whole, frame in zip(padded, frames):
        whole.paste(frame)
    times = [snapshot.time for snapshot in snapshots]
    seconds = [*np.diff(times).tolist(), LAST_FRAME_SECONDS]
    padded[0].save(
        path,
        save_all=True,
        append_images=padded[1:],
        duration=[round(1000 * frame_seconds) for frame_seconds in seconds],
        loop=0,
        lossless=True,
        quality=90,
        method=6,
    )
    check_size(path, MAX_ANIMATION_BYTES)
    save_picture(padded[-1], path.with_suffix(".png"))
    print(f"{len(frames)} frames of {size} pixels, {sum(seconds):.1f} s")


def draw_page(photographer: Photographer, snapshot: ProgramSnapshot, path: Path, is_dark: bool) -> None:
    """Write a picture of the whole page."""
    save_picture(photographer.photograph(snapshot, PAGE_WIDTH, 1.5, "body", is_dark=is_dark), path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, with a palette to save space."""
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    check_size(path, MAX_PICTURE_BYTES)


# --- the terminal and the notebook -------------------------------------------------------------


def draw_terminal(snapshot: ProgramSnapshot, path: Path) -> None:
    """Write a picture of the terminal, which uses a font of the reader's machine."""
    console = Console(
        record=True, width=TERMINAL_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(render_program(snapshot, TERMINAL_COLUMNS, TERMINAL_LINES))
    drawing = console.export_svg(title=f"python {PROGRAM_NAME}", unique_id="live")
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)  # The font is on another server.
    path.write_text(drawing.replace("<svg ", f'<svg width="{TERMINAL_WIDTH}" ', 1), "utf-8")
    check_size(path, MAX_PICTURE_BYTES)


def check_size(path: Path, max_bytes: int) -> None:
    """Raise ValueError if a file is too large for the documentation."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path.name} must have at most {max_bytes} bytes, got {path.stat().st_size}")


def main() -> None:
    """Record a map, and draw all pictures."""
    snapshots = record_map()
    still = choose_still(snapshots)
    draw_terminal(still, HERE / "live-terminal.svg")
    (HERE / "live-notebook.svg").write_text(render_program_svg(snapshots[-1]), "utf-8")
    with open_browser() as driver:
        photographer = Photographer(driver)
        draw_page(photographer, still, HERE / "live-light.png", is_dark=False)
        draw_page(photographer, still, HERE / "live-dark.png", is_dark=True)
        draw_animation(photographer, snapshots, HERE / "live.webp")


if __name__ == "__main__":
    main()
