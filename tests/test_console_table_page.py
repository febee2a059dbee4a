"""The console's page on a table in a real Chromium: real digits that `score` has scored, found, marked, written out."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT, serving
from page_in_browser import browser, console, needs_chromium, opened, violations
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from training.data import Sources
from training.datasets import load_dataset
from training.folders import load_folder
from training.recipe import DataSpec

MNIST = ROOT / "model_store" / "mnist-mda" / "1"
IMAGES = 130

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of MNIST's first test images, one file that is no image and one that is not there any more; read only."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "images").mkdir()
    mnist = load_dataset(DataSpec(name="mnist"), Sources())
    for number in range(IMAGES):
        place, label = 60_000 + number, int(mnist.labels[60_000 + number])
        Image.fromarray(mnist.images[place, 0].numpy()).save(folder / "images" / f"{number:03}-{label}.png")
    (folder / "images" / "x-broken.png").write_bytes(b"hello, this is no image")
    shutil.copy(folder / "images" / "000-7.png", folder / "images" / "y-gone.png")
    table = folder / "digits.parquet"
    serving("score", folder / "images", "--bundle", MNIST, "--out", table, "--allow-errors", "--quiet", check=True)
    (folder / "images" / "y-gone.png").unlink()
    return table


@pytest.fixture(scope="module")
def read_only(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a console that nobody marks anything with."""
    with console("--table", digits, "--marked", tmp_path_factory.mktemp("marked")) as address:
        yield f"{address}table"


@pytest.fixture
def url(digits: Path, tmp_path: Path) -> Iterator[str]:
    """The page of a console whose marks are its own."""
    with console("--table", digits, "--marked", tmp_path / "marked") as address:
        yield f"{address}table"


def tiles(page: Page) -> list[str]:
    """The names of the images that are shown, once the page stands still."""
    expect(page.locator("#cards")).to_have_attribute("aria-busy", "false")
    names: list[str] = page.locator("#cards .key").all_inner_texts()
    return names


def keys_where(digits: Path, where: str, order: str = "key") -> list[str]:
    found = duckdb.sql(f"SELECT key FROM '{digits}' WHERE {where} ORDER BY {order}").fetchall()
    return [key for (key,) in found]


def choose(page: Page, filter_name: str, choice: str) -> None:
    """Choose one of a filter's choices, and wait until the address says so."""
    before = page.url
    page.get_by_role("group", name=filter_name).get_by_role("radio", name=re.compile(f"^{choice}")).check()
    expect(page).not_to_have_url(before)


def test_filters_thumbnails_and_going_back(chromium: Browser, read_only: str, digits: Path) -> None:
    with opened(chromium, read_only) as page:
        expect(page.locator("#range")).to_have_text(f"1 to 60 of {IMAGES + 2} rows")
        assert tiles(page) == keys_where(digits, "true")[:60]
        first = page.locator("#cards img").first
        expect(first).to_have_class("tiny")
        assert first.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [28, 28]

        choose(page, "Class", "7")
        sevens = keys_where(digits, "label = '7'")
        expect(page.locator("#range")).to_have_text(f"1 to {len(sevens)} of {len(sevens)} rows")
        choose(page, "Component", "0: plain")
        page.get_by_label("Order").select_option("least typical first")
        plain = keys_where(digits, "label = '7' AND component = 0", "typicality")
        expect(page.locator("#cards .key")).to_have_count(len(plain))
        assert tiles(page) == plain
        assert page.url.endswith("?label=7&component=0&sort=typicality")

        page.reload()
        assert tiles(page) == plain
        expect(page.get_by_role("radio", name=re.compile("^0: plain"))).to_be_checked()

        page.go_back()
        expect(page.get_by_label("Order")).to_have_value("")
        page.go_back()
        expect(page.locator("#cards .key")).to_have_count(len(sevens))
        page.get_by_role("button", name="Clear the filters").click()
        expect(page.locator("#range")).to_have_text(f"1 to 60 of {IMAGES + 2} rows")
        page.get_by_role("button", name="Last", exact=True).click()
        expect(page.locator("#range")).to_have_text(f"121 to {IMAGES + 2} of {IMAGES + 2} rows")
        assert tiles(page) == keys_where(digits, "true")[120:]
        expect(page.locator(".tile").first).to_be_focused()


def test_what_cannot_be_shown_says_why(chromium: Browser, read_only: str) -> None:
    with opened(chromium, f"{read_only}?page=3") as page:
        broken, gone = (page.get_by_role("button", name=name) for name in ("x-broken.png", "y-gone.png"))
        broken.scroll_into_view_if_needed()
        expect(broken).to_contain_text("unsupported_image_type")
        expect(broken).to_contain_text(re.compile("no image.*image must be PNG, JPEG or WebP"))
        expect(gone).to_contain_text("image must be in the source, got none of this name: was it moved?")

    with opened(chromium, f"{read_only}?typicality_from=2") as page:
        expect(page.get_by_role("alert")).to_have_text("typicality_from must be a number from 0 to 1, got '2'")
    with opened(chromium, f"{read_only}?key=none+such") as page:
        expect(page.locator("#range")).to_have_text("No row passes these filters.")


def test_keyboard_alone_marks_undoes_and_writes_out(chromium: Browser, url: str, digits: Path, tmp_path: Path) -> None:
    keys = keys_where(digits, "label = '7'")
    with opened(chromium, f"{url}?label=7") as page:
        assert tiles(page) == keys
        tile = page.locator(".tile")
        tile.first.focus()
        for key, at in (("ArrowRight", 1), ("End", len(keys) - 1), ("Home", 0), ("ArrowDown", None), ("ArrowUp", 0)):
            page.keyboard.press(key)
            if at is not None:
                expect(tile.nth(at)).to_be_focused()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="What is it?")
        expect(dialog.get_by_role("combobox", name="Class")).to_be_focused()
        page.keyboard.type("a smudge")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(tile.first).to_be_focused()
        expect(tile.first).to_contain_text("marked: a smudge")
        expect(page.locator("#said")).to_have_text(f"{keys[0]} is marked as a smudge.")

        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        dialog.get_by_role("button", name="1", exact=True).focus()
        page.keyboard.press("Enter")
        expect(tile.nth(1)).to_contain_text("marked: 1")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.keyboard.type("../up")
        page.keyboard.press("Enter")
        expect(dialog.locator(".problem")).to_contain_text("label must be the name of a folder")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()

        undo, write = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Write out")
        undo.focus()
        page.keyboard.press("Enter")
        expect(tile.nth(1)).not_to_contain_text("marked")
        tile.nth(2).click()
        dialog.get_by_role("button", name="9", exact=True).click()
        expect(write).to_have_text("Write out 2 marked images")
        write.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#written")).to_contain_text("Wrote 2 images to marked/images: 9 (1), a smudge (1).")
        expect(page.locator("#written code")).to_have_text("python -m training train --data marked/images")

        choose(page, "Marks", "marked")
        assert tiles(page) == [keys[0], keys[2]]
        page.reload()
        assert tiles(page) == [keys[0], keys[2]]
        assert violations(page) == []

    folders = {"a smudge": keys[0], "9": keys[2]}
    for label, key in folders.items():
        (file,) = (tmp_path / "marked" / "images" / label).iterdir()
        assert file.read_bytes() == (digits.parent / "images" / key).read_bytes()
    spec = DataSpec.model_validate({"name": "folder", "size": 28, "channels": 1, "resize": "crop", "background": 0})
    data = load_folder(spec, Sources(folder=tmp_path / "marked" / "images", cache=tmp_path / "cache"))
    assert data.labels.tolist() == [0, 1]
    assert tuple(data.classes) == ("9", "a smudge")


def test_two_windows_see_each_others_marks(chromium: Browser, url: str) -> None:
    with opened(chromium, url) as one, opened(chromium, url) as other:
        for page, label in ((one, "3"), (other, "5")):
            tiles(page)
            page.locator(".tile").first.click()
            page.get_by_role("dialog").get_by_role("button", name=label, exact=True).click()
            expect(page.locator(".tile").first).to_contain_text(f"marked: {label}")

        one.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        first = one.locator(".tile").first
        expect(first).to_contain_text("marked: 5")
        one.get_by_role("button", name="Undo").click()
        expect(first).not_to_contain_text("marked")
        first.click()
        expect(one.get_by_role("button", name="Take the mark away")).to_be_hidden()


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True), (2000, False)])
def test_page_fits_and_axe_finds_nothing(chromium: Browser, read_only: str, width: int, dark: bool) -> None:
    with opened(chromium, read_only, dark=dark, width=width) as page:
        tiles(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert violations(page) == []
        page.locator(".tile").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page) == []
        box = page.get_by_role("dialog").bounding_box()

    assert box is not None
    assert 0 <= box["x"] < box["x"] + box["width"] <= width


def test_marks_outlive_the_console(chromium: Browser, digits: Path, tmp_path: Path) -> None:
    for visit in ("first", "second"):
        with (
            console("--table", digits, "--marked", tmp_path / "m") as address,
            opened(chromium, f"{address}table") as page,
        ):
            tiles(page)
            tile = page.locator(".tile").first
            if visit == "first":
                tile.click()
                page.get_by_role("dialog").get_by_role("button", name="4", exact=True).click()
            expect(tile).to_contain_text("marked: 4")
            assert str(tmp_path) not in page.content()
