"""The page in a real browser: headless Chromium, where there is one."""

from __future__ import annotations

import base64
import csv
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from data import made_dicom
from scanprior import api
from scanprior.run import Run
from serving.conftest import TOKEN, Server, listening

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

DROP = """
async ([target, files]) => {
  const transfer = new DataTransfer();
  for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
  const about = {bubbles: true, cancelable: true, dataTransfer: transfer};
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector(target).dispatchEvent(new DragEvent(kind, about));
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


class Watched:
    """A page, and whatever it complained of or asked elsewhere."""

    def __init__(self, browser: Browser, server: Server, **options: Any) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 1000}, **options)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        home = f"http://127.0.0.1:{server.port}"
        self.page.on(
            "request", lambda r: r.url.startswith((home, "blob:", "data:")) or self.elsewhere.append(r.url)
        )
        self.page.goto(home)

    def drop(self, *files: Path | tuple[str, bytes]) -> None:
        """Drag files onto the page."""
        named = [each if isinstance(each, tuple) else (each.name, each.read_bytes()) for each in files]
        self.page.evaluate(DROP, ["#drop", [[name, list(data)] for name, data in named]])

    def seen(self) -> None:
        """Wait until the picture and its map are there."""
        expect(self.page.locator("#explain-note")).to_contain_text("what the score reacts to", timeout=30_000)

    def pixels(self) -> np.ndarray:
        """Return what the canvas shows: (height, width, 4)."""
        drawn = self.page.evaluate("document.getElementById('canvas').toDataURL('image/png').split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGBA"))


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    made = Watched(browser, server)
    yield made
    assert made.complaints == [] and made.elsewhere == []
    made.page.close()


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).integers(0, 65536, (48, 64), dtype=np.uint16)
    return made_dicom.save(made_dicom.dataset(values), tmp_path_factory.mktemp("dicom") / "a <b>.dcm")


def test_a_dicom_file_is_dragged_onto_the_page(watched: Watched, dicom: Path) -> None:
    page = watched.page
    expect(page.locator(".research")).to_contain_text("Research use only")
    watched.drop(dicom)
    watched.seen()
    expect(page.locator("#detail-title")).to_have_text("a <b>.dcm")
    expect(page.locator("#verdict tbody tr")).to_have_count(2)
    expect(page.locator("#verdict")).to_contain_text("operating point")
    expect(page.locator("#verdict")).to_contain_text("Set at 90 %")
    expect(page.locator("#flag")).to_be_visible()  # noise is no phantom
    expect(page.locator("#flag")).to_contain_text("Do not rely on the answer")
    expect(page.locator("#cases li")).to_have_count(5)
    assert page.locator("#cases img").first.evaluate("image => image.naturalWidth") > 0
    expect(page.locator(".research")).to_be_in_viewport()


def test_window_overlay_and_inversion_change_the_picture(watched: Watched, images: list[Path]) -> None:
    page = watched.page
    watched.drop(images[0])
    watched.seen()
    with_map = watched.pixels()
    assert (np.ptp(with_map[..., :3].astype(int), axis=2) > 20).any()  # the map has colours
    page.locator("#opacity").fill("0")
    plain = watched.pixels()
    assert np.ptp(plain[..., :3].astype(int), axis=2).max() == 0  # the image is grey
    page.locator("#invert").click()
    np.testing.assert_array_equal(watched.pixels()[..., :3], 255 - plain[..., :3])
    page.locator("#reset").click()
    page.locator("#width").fill("16384")
    narrow = watched.pixels()[..., 0]
    expected = np.clip((plain[..., 0] * 257.0 - (32768 - 8192)) / 16384 * 255, 0, 255)
    assert np.abs(narrow - expected).max() <= 1
    before = page.locator("#level").input_value()
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowUp")
    assert int(page.locator("#level").input_value()) > int(before)
    page.locator("#method").select_option("attention_rollout")
    expect(page.locator("#explain-note")).to_contain_text("attention_rollout", timeout=30_000)


def test_several_files_make_a_table(watched: Watched, images: list[Path], tmp_path: Path) -> None:
    page = watched.page
    bad = ("=cmd()<img src=x onerror=alert(1)>.png", b"not an image")
    watched.drop(*images[:11], bad)
    watched.seen()
    expect(page.locator("#status")).to_have_text("11 of 12 images answered, 1 could not be read.")
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(12)
    expect(rows.nth(11)).to_contain_text("the content is text")
    assert page.locator("#table img").count() == 0  # a name is text
    rows.nth(3).locator("button").click()
    expect(page.locator("#detail-title")).to_have_text(images[3].name)
    with page.expect_download() as download:
        page.locator("#csv").click()
    download.value.save_as(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["image"] for row in table[:11]] == [path.name for path in images[:11]]
    assert table[11]["image"].startswith("'=cmd()") and table[11]["error"] == "the content is text"
    assert abs(float(table[0]["prob:normal"]) + float(table[0]["prob:abnormal"]) - 1) < 1e-6


def test_an_error_is_shown_and_the_page_goes_on(watched: Watched, images: list[Path]) -> None:
    page = watched.page
    watched.drop(("x.dcm", b"\0" * 128 + b"DICM broken"))
    expect(page.locator("#problem")).to_contain_text("x.dcm could not be read")
    expect(page.locator("#results")).to_be_hidden()
    watched.drop(images[0])
    watched.seen()
    expect(page.locator("#problem")).to_be_hidden()


def test_masks_and_frames(watched: Watched, images: list[Path], tmp_path: Path) -> None:
    page = watched.page
    stack = np.stack([made_dicom.grey_values(8), 255 - made_dicom.grey_values(8)])
    watched.drop(made_dicom.save(made_dicom.dataset(stack, frames=2), tmp_path / "two.dcm"))
    watched.seen()
    expect(page.locator("#frames")).to_have_text("of 2")
    page.locator("#opacity").fill("0")
    shown = watched.pixels()[..., 0].astype(int)
    page.locator("#frame").fill("2")
    page.locator("#frame").blur()
    deadline = time.monotonic() + 20
    while np.abs(watched.pixels()[..., 0] - (255 - shown)).max() > 1:
        assert time.monotonic() < deadline
    watched.seen()
    watched.drop(images[0])
    watched.seen()
    page.locator("#opacity").fill("50")
    page.locator("#model").select_option("lungs")
    expect(page.locator("#verdict")).to_contain_text("pixels")
    expect(page.locator("#explain-part")).to_be_hidden()


def test_the_keyboard_alone(watched: Watched, images: list[Path]) -> None:
    page = watched.page
    page.on(
        "filechooser", lambda _: None
    )  # or the first one may come before the browser is asked to tell of it
    page.wait_for_load_state("networkidle")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "files":
            break
    assert reached[0].startswith("Skip") and "model" in reached and reached[-1] == "files", reached
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([str(path) for path in images[:3]])
    watched.seen()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == images[2].name:
            break
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_have_text(images[2].name)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button, canvas')].filter(e => e.offsetParent && "
        "!(e.labels?.length || e.getAttribute('aria-label') || (e.tagName === 'BUTTON' && e.textContent.trim())))"
        ".map(e => e.id)"
    )
    assert unnamed == []


def test_runs_and_their_reports(watched: Watched, classifier: Run) -> None:
    api.report(classifier.path)
    page = watched.page
    page.get_by_role("button", name="Runs").click()
    expect(page.locator("#run-table tbody tr").first).to_contain_text("chest")
    expect(page.locator("#run-table")).to_contain_text("best")
    page.locator("#run-filter").fill("nothing-like-this")
    expect(page.locator("#run-table tbody tr")).to_have_count(0)
    page.locator("#run-filter").fill("")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Report").first.click()
    popup.value.wait_for_load_state()
    expect(popup.value.locator(".research").first).to_be_visible()
    popup.value.close()
    with page.expect_popup() as popup:
        page.get_by_role("button", name="Images").click()
        page.locator("#card").click()
    expect(popup.value.locator("h1")).to_have_text("chest")
    popup.value.close()


def test_the_token_is_asked_for_once(browser: Browser, classifier: Run, images: list[Path]) -> None:
    with listening([classifier.path], token=TOKEN) as server:
        made = Watched(browser, server, color_scheme="dark")
        page = made.page
        expect(page.locator("#gate")).to_be_visible()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#gate")).to_be_hidden()
        made.drop(images[0])
        made.seen()
        page.reload()
        page.wait_for_load_state("networkidle")
        expect(page.locator("#gate")).to_be_hidden()
        assert made.complaints == [] and made.elsewhere == []
        page.close()
