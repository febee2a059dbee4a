"""The console's pages in a real Chromium: it runs, nothing is asked but the console, and axe-core looks at it.

@pytest.fixture(scope="module")      # not for the session: while it is open, no other test can use asyncio
def chromium():
    with browser() as one:
        yield one

def test_page(chromium):
    with console(bundle) as url, opened(chromium, url) as page:
        page.get_by_label("Images").set_input_files(...)
        assert violations(page) == []
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)
TIMEOUT_MS = 15_000  # the machine may be busy
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open pages in")


@contextmanager
def console(*arguments: object, **variables: str) -> Iterator[str]:
    """`python -m serving console ...` on any port while the block runs; its address, which ends in a slash."""
    command = [sys.executable, "-m", "serving", "console", *map(str, arguments), "--port", "0", "--no-open"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if "http://" not in first:
            raise RuntimeError(f"the console must say where it is, got {first!r} {process.communicate()[1]}")
        yield next(word for word in first.split() if word.startswith("http://"))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert errors == "", errors


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS), timeout=TIMEOUT_MS)
        try:
            yield one
        finally:
            one.close()


@contextmanager
def opened(
    chromium: Browser, url: str, *, dark: bool = False, width: int = 1280, height: int = 900, **options: Any
) -> Iterator[Page]:
    """A page, in a context of its own.

    After the block it is an error if the page has asked anybody but the server of `url`, if a script of it failed, or
    if it has done what its policy forbids.
    """
    scheme = "dark" if dark else "light"
    viewport: Any = {"width": width, "height": height}
    context = chromium.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce", **options)
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    asked: list[str] = []
    wrong: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"{error.name}: {error.message} {error.stack}"))
    page.on("console", lambda message: wrong.append(message.text) if _is_wrong(message.text) else None)
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    origin = "/".join(url.split("/")[:3]) + "/"
    elsewhere = [one for one in asked if not one.startswith((origin, f"blob:{origin}", "data:"))]
    assert not elsewhere, elsewhere
    assert not wrong, wrong


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with a page as it stands, a line each; best the empty list."""
    import axe_playwright_python

    (source,) = Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")
    page.evaluate(source.read_text())  # by the browser's debugger, which the page's policy does not bind
    found = page.evaluate("tags => axe.run({runOnly: tags})", list(TAGS))
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def _is_wrong(text: str) -> bool:
    """Whether a message of the browser's console is more than that an answer had the status of an error."""
    return "Content Security Policy" in text or "Uncaught" in text
