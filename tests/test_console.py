"""The console's classify page, its command and its guard: real pages in a real Chromium."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import HELD_OUT_IMAGES, encoded, held_out, serving, softmax_answers, typical_answers
from page_in_browser import ROOT, browser, console, needs_chromium, opened, violations
from playwright.sync_api import Browser, Page, expect

from serving.console.backend import Served
from serving.console.remote import BegunHere, models_by_metrics
from serving.plane import Plane
from serving.predictor import Predictor
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.state import Server, save

MNIST = Path("model_store/mnist-mda/1")
OWN = {"Sec-Fetch-Site": "same-origin"}  # what a browser says of a page's own requests
KEY = "a-key.of_this-test"
MANAGEMENT_KEY = "m" * 32
WRONG_KEY = "w" * 32


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def on_bundles(typical_dir: Path, softmax_dir: Path) -> Iterator[str]:
    """A console on bundles: one with components, plane and pictures, one with held-out images, one with neither."""
    with console(MNIST, typical_dir, softmax_dir) as url:
        yield url


@pytest.fixture(scope="module")
def beside(server: Server, state: Path) -> Iterator[str]:
    """A console beside the shared server."""
    with console("--state", state) as url:
        yield url


@pytest.fixture
def files(images: list[bytes], tmp_path: Path) -> list[Path]:
    """Eight images as files."""
    made = [tmp_path / f"{n}.png" for n in range(len(images))]
    for file, image in zip(made, images, strict=True):
        file.write_bytes(image)
    return made


def ready(page: Page, model: str, other: str = "") -> None:
    """Wait for the models, and choose."""
    expect(page.locator("#status")).to_contain_text("Answers come from")
    page.locator("#model").select_option(model)
    page.locator("#other").select_option(other)


def choose(page: Page, files: list[Path]) -> None:
    """Choose files and wait until all are answered."""
    page.get_by_label("Images", exact=True).set_input_files(files)
    answered(page)


def answered(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("answered.")


def drop(page: Page, files: list[Path]) -> None:
    """Drop files on the page, as a mouse does."""
    contents = [{"name": file.name, "text": base64.b64encode(file.read_bytes()).decode()} for file in files]
    script = """contents => {
      const data = new DataTransfer();
      for (const {name, text} of contents) {
        data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
      }
      return data;
    }"""
    page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(script, contents)})


def predicted(server: Server, model: str, image: bytes, **parameters: Any) -> dict[str, Any]:
    """What the server itself answers."""
    form = {"parameters": json.dumps(parameters)}
    url = f"{server.url}/predictions/{model}"
    answer: dict[str, Any] = httpx.post(url, files={"data": image}, data=form, trust_env=False, timeout=60).json()
    return answer


def sets(page: Page) -> list[list[str]]:
    """The prediction set of each card."""
    return [one.get_by_role("listitem").all_inner_texts() for one in page.locator(".labels").all()]


def test_a_server_that_is_silent_serves_no_models(tmp_path: Path) -> None:
    """What its exporter says while TorchServe does not answer."""
    (tmp_path / "metrics").write_text(
        '# TYPE discriminant_workers gauge\ndiscriminant_workers{model="a",version="-"} 0.0\n'
        'discriminant_workers{model="b",version="2"} 1.0\ndiscriminant_workers{model="b",version="10"} 1.0\n'
    )

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Files) as http:
        threading.Thread(target=http.handle_request, daemon=True).start()
        assert models_by_metrics(f"http://127.0.0.1:{http.server_port}/metrics") == [Served("b", 10), Served("b", 2)]


@needs_chromium
def test_dropped_images_get_the_answers_of_the_server(
    chromium: Browser, beside: str, server: Server, files: list[Path]
) -> None:
    with opened(chromium, beside) as page:
        ready(page, "tiny-typical:1")
        with page.expect_response("**/answer?coverage=0.9") as response:
            drop(page, files[:1])
        got = response.value.json()["answer"]
        answered(page)
        shown = page.locator(".card").inner_text()

    expected = predicted(server, "tiny-typical", files[0].read_bytes(), coverage=0.9)
    assert set(got.pop("timings")) == {"decode", "inference", "encode"}
    assert got == expected
    assert f"{100 * expected['probability']:.1f} %" in shown
    assert expected.get("component_name", f"component {expected['component']}") in shown
    assert f"At least as typical as {100 * expected['typicality']:.1f} % of the {HELD_OUT_IMAGES} held-out" in shown


@needs_chromium
def test_a_broken_image_has_its_error_and_the_others_their_answers(
    chromium: Browser, beside: str, files: list[Path]
) -> None:
    files[1].write_bytes(files[1].read_bytes()[:50])
    files[2].write_text("no image")
    with opened(chromium, beside) as page:
        ready(page, "tiny-typical:1")
        choose(page, files[:4])
        status = page.locator("#status").inner_text()
        problems = [card.locator(".problem").all_inner_texts() for card in page.locator(".card").all()]

    assert status == "2 images answered. 2 without an answer."
    assert problems[0] == problems[3] == []
    assert "undecodable_image" in problems[1][0]
    assert "image must be PNG, JPEG or WebP" in problems[2][0]


@needs_chromium
def test_the_slider_asks_the_server_for_other_sets(
    chromium: Browser, beside: str, server: Server, files: list[Path]
) -> None:
    with opened(chromium, beside) as page:
        ready(page, "tiny-typical:1")
        choose(page, files)
        slider = page.get_by_label("Coverage of the prediction sets")
        before, greatest = sets(page), float(slider.get_attribute("max") or 0)
        slider.press("End")
        expect(page.get_by_text(f"Possible at {100 * greatest:.1f} %")).to_have_count(len(files))
        answered(page)
        after = sets(page)

    assert before == [
        predicted(server, "tiny-typical", one.read_bytes(), coverage=0.9)["labels_at"]["set"] for one in files
    ]
    assert after == [
        predicted(server, "tiny-typical", one.read_bytes(), coverage=greatest)["labels_at"]["set"] for one in files
    ]
    assert before != after
    assert 0 <= held_out().most_coverage - greatest < 0.005


@needs_chromium
def test_two_models_stand_side_by_side_and_where_they_disagree_is_counted(
    chromium: Browser, beside: str, server: Server, tmp_path: Path
) -> None:
    patterns = np.random.default_rng(5).integers(0, 256, (200, 1, 2, 2), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    agree = typical_answers(patterns)["posterior"].argmax(1) == softmax_answers(patterns)["posterior"].argmax(1)
    patterns = np.concatenate([patterns[agree, 0][:3], patterns[~agree, 0][:5]])
    files = [tmp_path / f"{n}.png" for n in range(len(patterns))]
    for file, pattern in zip(files, patterns, strict=True):
        file.write_bytes(encoded(pattern))
    labels = [
        [predicted(server, model, one.read_bytes())["label"] for model in ("tiny-typical", "tiny-softmax")]
        for one in files
    ]
    differing = [f"≠ The models disagree: {a} or {b}" for a, b in labels if a != b]
    with opened(chromium, beside) as page:
        ready(page, "tiny-typical:1", "tiny-softmax:1")
        choose(page, files)
        status = page.locator("#status").inner_text()
        headings = page.locator(".card").first.get_by_role("heading", level=3).all_inner_texts()
        marks = page.locator(".mark:visible").all_inner_texts()
        page.get_by_label("Only images on which the models disagree").check()
        visible = page.locator(".card:visible").count()
        missing = page.locator("#missing").inner_text()

    assert len(differing) == 5
    assert status == f"8 images answered. The models disagree on {len(differing)}."
    assert headings == ["tiny-typical, version 1", "tiny-softmax, version 1"]
    assert marks == differing
    assert visible == len(differing)
    assert "tiny-softmax, version 1: No images were held out" in missing


@needs_chromium
def test_choices_that_change_while_answers_arrive_are_followed(
    chromium: Browser, on_bundles: str, files: list[Path]
) -> None:
    with opened(chromium, on_bundles) as page:
        ready(page, "mnist-mda:1")
        page.get_by_label("Images", exact=True).set_input_files(files)
        for model in ("tiny-typical:1", "mnist-mda:1") * 10:
            page.locator("#model").select_option(model)
        answered(page)

        expect(page.locator("#status")).to_have_text("8 images answered.")
        expect(page.get_by_role("heading", name="mnist-mda, version 1")).to_have_count(len(files))


@needs_chromium
def test_many_images_are_answered_and_those_that_are_too_many_are_told(
    chromium: Browser, on_bundles: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    files = [tmp_path / f"{n}.png" for n in range(257)]
    for file in files:
        file.write_bytes(encoded(rng.integers(0, 256, (8, 8), dtype=np.uint8)))
    with opened(chromium, on_bundles) as page:
        ready(page, "tiny-typical:1")
        choose(page, files[:50])
        expect(page.locator("#status")).to_have_text("50 images answered.")
        choose(page, files[50:])

        expect(page.locator("#status")).to_have_text("256 images answered.")
        expect(page.locator(".likeliest")).to_have_count(256)
        expect(page.get_by_role("alert")).to_contain_text("The page holds 256 images; 1 were left out.")


@needs_chromium
def test_an_image_is_pasted_and_one_that_is_too_large_is_not_sent(
    chromium: Browser, on_bundles: str, files: list[Path]
) -> None:
    paste = """size => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(size)], "image.png", { type: "image/png" }));
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
    }"""
    with opened(chromium, on_bundles) as page:
        ready(page, "tiny-typical:1")
        page.evaluate(paste, 10 * 1024 * 1024 + 1)

        expect(page.get_by_role("heading", name="pasted 1")).to_be_visible()
        expect(page.locator(".problem")).to_contain_text("image must have at most 10485760 bytes, got 10485761")


@needs_chromium
def test_details_show_the_plane_the_cut_and_the_times(chromium: Browser, on_bundles: str, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(encoded(np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))))
    with opened(chromium, on_bundles) as page:
        ready(page, "mnist-mda:1")
        choose(page, [wide])
        words = re.compile("The centre, 40 . 40 of 60 . 40 pixels, made into 28 . 28 pixels of gray.")
        expect(page.get_by_text(words)).to_be_visible()
        plane = page.get_by_role("img", name="The image on the feature plane").count()
        times = page.locator(".times").inner_text()
        pictures = page.locator("img").evaluate_all("ones => ones.map(one => one.naturalWidth)")
        classes = page.get_by_role("table", name="Posterior").get_by_role("row").count()

    assert plane == 1
    assert all(stage in times for stage in ("decode", "inference", "encode", "round trip"))
    assert 0 not in pictures
    assert pictures.count(28) >= 4  # the graph's input and the mean images
    assert classes == 10


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_and_nothing_is_too_wide(
    chromium: Browser, on_bundles: str, files: list[Path], dark: bool
) -> None:
    files[1].write_text("no image")
    with opened(chromium, on_bundles, dark=dark) as page:
        ready(page, "mnist-mda:1", "tiny-softmax:1")
        empty = violations(page)
        choose(page, files[:3])
        page.get_by_role("button", name="Open all details").click()
        expect(page.get_by_text("What was cut and resized")).to_have_count(4)
        full = violations(page)
        page.set_viewport_size({"width": 360, "height": 740})
        scroll = page.evaluate("document.documentElement.scrollWidth")

    assert empty == full == []
    assert scroll <= 360


@needs_chromium
def test_the_page_is_used_by_keyboard(chromium: Browser, on_bundles: str, files: list[Path]) -> None:
    focused = "document.activeElement.id || document.activeElement.textContent"
    with opened(chromium, on_bundles) as page:
        ready(page, "tiny-typical:1")
        choose(page, files[:3])
        page.locator("body").press("Tab")
        first = page.evaluate(focused)
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        second = page.evaluate(focused)
        page.get_by_role("button", name="Remove 0.png").press("Enter")
        after = page.evaluate("document.activeElement.ariaLabel")
        page.locator("summary").first.press("Enter")

        assert (first, second, after) == ("Skip to the content", "files", "Remove 1.png")
        expect(page.get_by_role("heading", name="What was cut and resized")).to_be_visible()


@needs_chromium
def test_the_key_stays_in_the_console_and_a_server_that_has_stopped_is_told(
    chromium: Browser, typical_dir: Path, files: list[Path], own_state: Path, tmp_path: Path
) -> None:
    key_file, store = tmp_path / "keys.json", tmp_path / "store"
    key_file.write_text(json.dumps({"inference": KEY, "management": MANAGEMENT_KEY}))
    key_file.chmod(0o600)
    package(typical_dir, model_store=store)
    start = ["start", "--port", 0, "--device", "cpu", "--model-store", store, "--state", own_state, "--workers", 1]
    serving(*start, "--token-auth", "--key-file", key_file, check=True)
    with console("--state", own_state) as url, opened(chromium, url) as page:
        asked: list[tuple[str, str]] = []
        page.on("request", lambda request: asked.append((request.method, request.url)))
        page.reload()
        ready(page, "tiny-typical:1")
        choose(page, files)
        seen = [page.content(), *(everything(*one, files[0]) for one in set(asked) if one[1].startswith("http"))]
        wrong = by_wrong_key(launch.load(own_state), typical_dir, files[0])
        launch.stop(own_state, grace_s=0, drain_s=0)
        page.get_by_label("Images", exact=True).set_input_files(files[0])
        expect(page.get_by_role("alert")).to_contain_text("no server runs in")
        expect(page.get_by_role("alert")).to_contain_text("begin one with `python -m serving start`")

    assert {method for method, _ in asked} == {"GET", "POST"}
    assert not any(KEY in one or MANAGEMENT_KEY in one for one in seen)
    assert "the key is none of the server's, or lacks: name one with --key-file" in wrong
    assert WRONG_KEY not in wrong


def everything(method: str, url: str, image: Path) -> str:
    """All of a response of the console: its headers and its body."""
    content = image.read_bytes() if method == "POST" else b""
    response = httpx.request(method, url, content=content, headers=OWN, trust_env=False, timeout=60)
    return f"{response.headers} {response.text}"


def by_wrong_key(server: Server | None, bundle: Path, image: Path) -> str:
    """What a console with a wrong key replies."""
    assert server is not None
    with console("--url", server.url, bundle, DISCRIMINANT_INFERENCE_KEY=WRONG_KEY) as url:
        ask = f"{url}api/models/tiny-typical/1/answer"
        return httpx.post(ask, content=image.read_bytes(), headers=OWN, trust_env=False).text


def test_a_server_elsewhere_is_asked_by_its_address(
    beside: str, server: Server, typical_dir: Path, images: list[bytes]
) -> None:
    ask = "api/models/tiny-typical/1"
    with console("--url", server.url, "--metrics-url", server.metrics_url) as url:
        models = httpx.get(f"{url}api/models", trust_env=False).json()["models"]
        known = httpx.get(f"{url}{ask}", trust_env=False).json()
        answer = httpx.post(f"{url}{ask}/answer", content=images[0], headers=OWN, trust_env=False).json()

    assert models == [
        {"name": name, "version": 1} for name in ("tiny-mda", "tiny-mda-ts", "tiny-softmax", "tiny-typical")
    ]
    assert known is None
    assert {**answer["answer"], "timings": 0} == {**predicted(server, "tiny-typical", images[0]), "timings": 0}


def test_the_default_version_comes_before_a_models_others(server: Server, tmp_path: Path) -> None:
    save(replace(server, history={"cats": [1, 2], "dogs": [5]}, beside={"cats": [3]}), tmp_path)

    assert [*map(str, BegunHere(tmp_path).models())] == ["cats:2", "dogs:5", "cats:1", "cats:3"]


def test_bundles_and_a_server_give_the_same(beside: str, on_bundles: str, images: list[bytes]) -> None:
    ask = "api/models/tiny-typical/1"
    got = []
    for url in (beside, on_bundles):
        result = httpx.post(f"{url}{ask}/answer?coverage=0.8", content=images[0], headers=OWN, trust_env=False).json()
        del result["round_trip_s"], result["answer"]["timings"]
        got.append((result, httpx.get(f"{url}{ask}", trust_env=False).json()))

    assert got[0] == got[1]


def test_an_image_is_placed_among_the_held_out_images_and_on_the_plane(on_bundles: str) -> None:
    predictor = Predictor.open(MNIST)
    golden, _ = predictor.bundle.read_golden()
    images = [encoded(pixels[0]) for pixels in golden]
    outputs = predictor.infer(golden)
    assert predictor.held_out is not None
    assert predictor.bundle.plane is not None
    typicality = predictor.held_out.typicality(outputs["typicality_score"])
    plane = Plane.read(predictor.bundle.plane)
    url = f"{on_bundles}api/models/mnist-mda/1"
    bins = httpx.get(url, trust_env=False).json()["held_out"]["histogram"]

    for n, image in enumerate(images):
        result = httpx.post(f"{url}/answer", content=image, headers=OWN, trust_env=False).json()
        bin_of_image = min(int(result["typicality_place"] * len(bins)), len(bins) - 1)
        no_more_typical = typicality[n] * (sum(bins) + 1) - 1
        assert sum(bins[:bin_of_image]) <= round(no_more_typical, 6) <= sum(bins[: bin_of_image + 1])
        expected = (outputs["features"][n] - plane.centre) @ plane.axes.T
        assert result["plane_place"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3)
        assert "features" not in result["answer"]


def test_what_a_model_cannot_tell_is_left_out_and_said(on_bundles: str, images: list[bytes]) -> None:
    url = f"{on_bundles}api/models/tiny-softmax/1/answer?coverage=0.9"
    result = httpx.post(url, content=images[0], headers=OWN, trust_env=False).json()

    assert "labels_at" not in result["answer"]
    assert "label" in result["answer"]
    assert result["refused"]["coverage"].startswith("coverage must be left out, as tiny-softmax has no")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"Host": "evil.example"}),
        ("GET", {"Host": "127.0.0.1.evil.example"}),
        ("POST", {"Host": "evil.example", "Origin": "http://evil.example"}),
        ("POST", {"Origin": "http://evil.example"}),
        ("POST", {"Origin": "null"}),
        ("POST", {"Origin": "http://127.0.0.1:1"}),
        ("POST", {"Sec-Fetch-Site": "cross-site"}),
        ("POST", {"Sec-Fetch-Site": "same-site"}),
        ("POST", {}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
    ],
)
def test_what_comes_from_elsewhere_is_refused(on_bundles: str, method: str, headers: dict[str, str]) -> None:
    path = "api/models/tiny-typical/1/answer" if method == "POST" else ""
    response = httpx.request(method, f"{on_bundles}{path}", headers=headers, content=b"", trust_env=False)

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize("path", ["", "health", "table", "static/svg.js", "api/models", "nothing", "static/nothing"])
def test_every_response_is_bound_by_the_policy(on_bundles: str, path: str) -> None:
    headers = httpx.get(on_bundles + path, trust_env=False).headers
    policy = dict(one.strip().split(" ", 1) for one in headers["content-security-policy"].split(";"))

    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_a_body_that_is_too_long_is_refused(on_bundles: str) -> None:
    url = f"{on_bundles}api/models/tiny-typical/1/answer"
    response = httpx.post(url, content=bytes(16 * 1024 * 1024 + 1), headers=OWN, trust_env=False, timeout=60)

    assert response.status_code == 413


def test_the_model_sees_an_image_upright(on_bundles: str) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255  # the left end, which is the top once it is turned
    image = encoded(pixels, "JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    seen = httpx.post(f"{on_bundles}api/models/tiny-typical/1/seen", content=image, headers=OWN, trust_env=False).json()

    assert seen["size"] == [20, 40]
    assert seen["box"] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "nowhere"], "begin a server with `python -m serving start`"),
        (["nowhere/1"], "nowhere/1/bundle.json must exist"),
        (["--url", "http://127.0.0.1:9"], "--url must come with --metrics-url or BUNDLEs"),
        (["--url", "http://127.0.0.1:9", "--metrics-url", "http://127.0.0.1:9/metrics"], "--metrics-url must be"),
        ([str(MNIST), "--images", "photos"], "--images and --marked must come with --table"),
        ([str(MNIST), "--host", "203.0.113.1"], "--host and --port must be free here"),
        ([str(MNIST), "--url", "http://127.0.0.1:9", "--key-file", "nowhere.json"], "nowhere.json must hold"),
    ],
)
def test_what_cannot_be_begun_says_what_to_do(arguments: list[str], message: str) -> None:
    result = serving("console", *arguments, "--no-open")

    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['starlette'] = None; sys.argv = ['serving', 'console']; import serving.__main__ as s"
    )
    result = subprocess.run([sys.executable, "-c", f"{script}; s.main()"], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 1
    assert "got no starlette: pip install 'discriminant[console]'" in result.stderr
