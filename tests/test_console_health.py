"""The page on health: its figures against Prometheus' own and by hand, and in a real Chromium beside a real server."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import free_port, serving, until
from page_in_browser import browser, console, needs_chromium, opened, violations
from playwright.sync_api import Browser, Page
from prometheus_client import CollectorRegistry, generate_latest

from serving.bundle import Bundle
from serving.console.context import Knowledge
from serving.console.health import Watch
from serving.console.health.figures import of_models, of_server
from serving.console.health.history import GAP_S, KEPT_S, History
from serving.console.health.quantiles import parts, quantile
from serving.console.health.scrape import Counts, read, scrape
from serving.errors import ServerError
from serving.metrics import Metrics
from serving.torchserve import door
from serving.torchserve.door import mark_draining
from serving.torchserve.state import Server

HEALTH = "health"
REQUESTS = "discriminant_requests_total"
IDS = {"model": "m", "version": "1"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")


def counts(name: str = REQUESTS, value: float = 0.0, **labels: str) -> Counts:
    return Counts({(name, tuple(sorted((IDS | labels).items()))): value})


def both(*ones: Counts) -> Counts:
    return Counts({series: value for one in ones for series, value in one.values.items()})


def promtool(folder: Path, series: dict[str, str], expressions: dict[str, float]) -> None:
    """Hold what we found against what Prometheus' expressions are at five minutes, of series with a value a minute."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"abs({one} - {found}) < bool 1e-9",
                "eval_time": "5m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
            for one, found in expressions.items()
        ],
    }
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# Quantiles


BUCKETS = [
    {"0.005": 3.0, "0.01": 9.0, "0.1": 9.0, "+Inf": 10.0},
    {"0.005": 0.0, "0.01": 4.0, "0.1": 90.0, "+Inf": 90.0},
    {"1": 5.0, "2.5": 5.0, "+Inf": 5.0},
    {"-1": 2.0, "1": 4.0, "+Inf": 8.0},
]


def test_quantile_is_interpolated_in_its_bucket() -> None:
    assert quantile(0.5, BUCKETS[0]) == pytest.approx(0.005 + 0.005 * 2 / 6)
    assert quantile(0.2, BUCKETS[0]) == pytest.approx(0.005 * 2 / 3)
    assert quantile(0.99, BUCKETS[0]) == 0.1  # beyond the last bound
    assert quantile(0.1, BUCKETS[3]) == -1


def test_quantile_of_nothing_is_none() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {"1": 0.0, "+Inf": 0.0}) is None
    assert quantile(0.5, {"1": 3.0}) is None
    assert quantile(0.5, {"+Inf": 3.0}) is None


@needs_promtool
@pytest.mark.parametrize("buckets", BUCKETS)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.99])
def test_quantile_is_that_of_prometheus(buckets: dict[str, float], share: float, tmp_path: Path) -> None:
    series = {f'h_bucket{{le="{bound}"}}': f"{count}x5" for bound, count in buckets.items()}
    found = quantile(share, buckets)
    assert found is not None

    promtool(tmp_path, series, {f"histogram_quantile({share}, h_bucket)": found})


def test_parts_of_a_histogram_are_what_is_in_each_bucket_alone() -> None:
    assert parts({"0.2": 5.0, "0.1": 2.0, "+Inf": 9.0}) == [(0.1, 2), (0.2, 3)]


# Rates


@needs_promtool
def test_rates_over_a_restart_are_those_of_prometheus(tmp_path: Path) -> None:
    values = (10, 16, 30, 4, 9, 21)  # begun anew after the third
    history = History()
    for n, value in enumerate(values):
        history.add(GAP_S * n, counts(value=value))

    growth = history.over(KEPT_S)

    assert growth is not None
    assert growth.lasted_s == 300
    assert growth.counts.sum(REQUESTS) == 6 + 14 + 4 + 5 + 12
    rate = growth.counts.sum(REQUESTS) / growth.lasted_s
    promtool(tmp_path, {"requests": " ".join(map(str, values))}, {"rate(requests[5m])": rate})


def test_no_rate_is_below_zero_when_the_server_begins_anew() -> None:
    history = History()
    history.add(0, both(counts(value=100.0, status="200"), counts(value=7.0, status="415")))
    history.add(5, both(counts(value=110.0, status="200"), counts(value=7.0, status="415")))
    history.add(10, both(counts(value=3.0, status="200"), counts(value=9.0, status="415")))  # the second beyond before

    growth = history.over(60)
    assert growth is not None
    assert growth.counts.by("status", REQUESTS) == {"200": 13, "415": 9}


def test_one_models_fall_is_not_anothers() -> None:
    history = History()
    history.add(0, both(counts(value=50.0), counts(value=50.0, model="other")))
    history.add(5, both(counts(value=1.0), counts(value=52.0, model="other")))

    growth = history.over(60)
    assert growth is not None
    assert growth.counts.by("model", REQUESTS) == {"m": 1, "other": 2}


def test_a_series_that_appears_counts_from_nothing_and_one_that_is_away_for_a_moment_does_not() -> None:
    history = History()
    history.add(0, counts(value=5.0, status="200"))
    history.add(5, both(counts(value=5.0, status="200"), counts(value=2.0, status="503")))
    history.add(10, counts(value=6.0, status="200"))
    history.add(15, both(counts(value=6.0, status="200"), counts(value=3.0, status="503")))

    growth = history.over(60)
    assert growth is not None
    assert growth.counts.by("status", REQUESTS) == {"200": 1, "503": 3}


def test_gauges_may_fall() -> None:
    history = History()
    history.add(0, both(counts(value=5.0), counts("discriminant_workers_ready", 2.0)))
    history.add(5, both(counts(value=7.0), counts("discriminant_workers_ready", 0.0)))

    growth = history.over(60)
    assert growth is not None
    assert growth.counts.sum(REQUESTS) == 2


def test_history_is_bounded_and_forgotten_after_a_pause() -> None:
    history = History()
    for n in range(1000):
        history.add(5.0 * n, counts(value=n))
    assert len(history.steps) == KEPT_S / 5
    minute = history.over(60)
    assert minute is not None
    assert (minute.lasted_s, minute.counts.sum(REQUESTS)) == (60, 12)

    history.add(5.0 * 999 + GAP_S + 1, counts(value=5000))
    assert history.over(60) is None
    history.add(5.0 * 999 + GAP_S + 6, counts(value=5002))
    again = history.over(60)
    assert again is not None
    assert (again.lasted_s, again.counts.sum(REQUESTS)) == (5, 2)


# Figures of a model, from what a worker counts


def exposed(registry: CollectorRegistry, *lines: str) -> Counts:
    return read(generate_latest(registry).decode() + "\n".join(lines) + "\n")


@pytest.fixture
def known(typical_dir: Path, tmp_path: Path) -> Bundle:
    """A bundle of four classes of two components, whose test split had 400 images, half in each component."""
    bundle = Bundle.load(typical_dir)
    metrics = {"occupancy": [[0.5, 0.5]] * 4, "images": 400}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"metrics": metrics}))


def answer(label: str, component: int, typicality: float) -> dict[str, Any]:
    return {"label": label, "probability": 0.9, "component": component, "log_density": 0.0, "typicality": typicality}


def test_figures_of_a_model_by_hand(known: Bundle) -> None:
    registry = CollectorRegistry()
    worker = Metrics(known.manifest, registry)
    ids = 'model="tiny-typical",version="1"'
    workers = (f"discriminant_workers{{{ids}}} 2", f"discriminant_workers_ready{{{ids}}} 1")
    types = ("# TYPE discriminant_workers gauge", "# TYPE discriminant_workers_ready gauge")
    gauges = [line for pair in zip(types, workers, strict=True) for line in pair]
    history = History()
    history.add(0, exposed(registry, *gauges))
    answers = [answer("cross", 0, n / 100 - 0.005) for n in range(1, 101)]  # 1 of them below 0.01, 10 in each tenth
    answers[:20] = [one | {"component": 1} for one in answers[:20]]
    worker.count_batch(100, 0.0015, {})
    worker.count_request(200, answers)
    worker.count_batch(2, 0.0015, {})
    worker.count_request(415, [])
    history.add(10, exposed(registry, *gauges))

    (found,) = of_models(history, history.latest or Counts({}), Knowledge.of_bundles([known]))

    assert (found["name"], found["version"], found["workers"], found["workers_ready"]) == ("tiny-typical", 1, 2, 1)
    assert found["per_second"] == {"200": 0.1, "415": 0.1}
    assert found["batch"] == pytest.approx({"p50": 0.0015, "p99": 0.00199})  # between 0.001 and 0.002
    assert found["request"] is None
    assert found["images_a_batch"] == 51
    assert (found["answered"], found["atypical"]) == (100, 0.01)
    assert found["confidence"] == pytest.approx(0.9)
    assert found["typicality"] == [10] * 10
    first, *others = found["occupancy"]
    assert (first["label"], first["images"], first["names"]) == ("cross", 100, ["upright", "tilted"])
    assert first["found"] == [0.8, 0.2]
    assert first["cohens_w"] == pytest.approx(0.6)  # sqrt(2 * 0.3^2 / 0.5)
    assert (first["effect"], first["is_notable"]) == ("large", True)
    assert {one["effect"] for one in others} == {"too few images to tell"}
    assert found["is_known"]
    (point,) = found["past"]
    assert point["per_second"] == pytest.approx(0.2)


def test_waits_are_torchserves_of_all_versions_and_refusals_are_the_servers() -> None:
    lines = [
        "# TYPE discriminant_workers gauge",
        'discriminant_workers{model="m",version="2"} 1.0',
        'discriminant_workers{model="m",version="1"} 1.0',
        "# TYPE ts_inference_latency_seconds histogram",
        *(
            f'ts_inference_latency_seconds_bucket{{model_name="m",model_version="{version}",le="{le}",}} %s'
            for version in ("default", "1")
            for le in ("0.005", "0.01", "+Inf")
        ),
        "# TYPE Requests4XX counter",
        'Requests4XX{Level="Host",Hostname="h",} %s',
    ]
    text = "\n".join(lines) + "\n"
    history = History()
    history.add(0, read(text % (0, 0, 0, 0, 0, 0, 1)))
    history.add(10, read(text % (0, 6, 6, 2, 4, 4, 21)))

    newer, older = of_models(history, history.latest or Counts({}), Knowledge({}))

    assert (newer["version"], older["version"]) == (2, 1)
    expected = {"p50": 0.005 + 0.005 * 3 / 8, "p99": 0.005 + 0.005 * 7.9 / 8}  # 2, 8 and none of ten are in a bucket
    assert newer["request"] == older["request"] == pytest.approx(expected)
    assert newer["occupancy"] is None
    assert not newer["is_known"]
    assert of_server(history) == {"4XX": 2, "5XX": 0}


def test_components_that_a_named_bundle_has_not_are_left_out(known: Bundle) -> None:
    ids = {"model": "tiny-typical", "version": "1"}
    other = ("cross", "2"), ("square", "0"), ("cross", "1")
    name = "discriminant_components_total"
    found = both(
        counts("discriminant_workers", 1.0, **ids),
        *(counts(name, 30.0, label=label, component=component, **ids) for label, component in other),
    )
    history = History()
    history.add(0, found)

    (figures_of_one,) = of_models(history, found, Knowledge.of_bundles([known]))
    assert {one["label"]: one["images"] for one in figures_of_one["occupancy"]} == {
        "cross": 30, "circle": 0, "empty": 0, "noise": 0,
    }  # fmt: skip


def test_model_of_a_server_that_does_not_answer_has_no_version() -> None:
    silent = counts("discriminant_workers", 0.0, version="-")
    history = History()
    history.add(0, silent)

    assert of_models(history, silent, Knowledge({})) == []


def test_what_is_no_metrics_of_this_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no metrics of this server$"):
        read("# TYPE up gauge\nup 1\n")
    url = f"http://127.0.0.1:{free_port()}/metrics"
    with pytest.raises(ServerError, match=rf"^the server's metrics must be at {url}, got .*refused"):
        scrape(url)


def test_another_address_is_another_server(server: Server) -> None:
    urls: list[str | None] = [server.metrics_url, f"{server.metrics_url}?x", None]
    watch = Watch(lambda: urls[0], Knowledge({}))

    assert watch.look("start")["state"] == "ready"
    first = watch._history
    watch.look("start")
    assert watch._history is first
    urls.pop(0)
    watch.look("start")
    assert watch._history is not first
    urls.pop(0)
    assert watch.look("start") == {"state": "none"}


# A real server


@pytest.fixture(scope="module")
def beside(server: Server, state: Path) -> Iterator[str]:
    with console("--state", state) as url:
        yield url


def figures(url: str, since: str = "start") -> Any:
    return httpx.get(f"{url}health/figures", params={"since": since}, timeout=60, trust_env=False).json()


def model(found: Any, name: str) -> Any:
    return next(one for one in found["models"] if one["name"] == name)


def test_requests_of_a_real_server_are_counted(server: Server, beside: str, images: list[bytes]) -> None:
    before = model(figures(beside), "tiny-typical")
    until(lambda: model(figures(beside), "tiny-typical")["per_second"] is not None)
    for image in [*images, b"text"]:
        httpx.post(f"{server.url}/predictions/tiny-typical", content=image, timeout=60, trust_env=False)

    seen = []

    def sees_all() -> bool:
        seen.append(figures(beside))
        now = model(seen[-1], "tiny-typical")
        errors = now["errors"].get("unsupported_image_type", 0) - before["errors"].get("unsupported_image_type", 0)
        return bool((now["answered"] - before["answered"], errors) == (len(images), 1))

    until(sees_all)
    now = model(seen[-1], "tiny-typical")
    assert seen[-1]["state"] == "ready"
    assert now["workers"] == now["workers_ready"] == 1
    assert now["per_second"]["200"] == pytest.approx(len(images) * now["per_second"]["415"])
    assert 0 < now["request"]["p50"] <= now["request"]["p99"]
    assert 0 < now["batch"]["p50"] <= now["batch"]["p99"]
    assert sum(model(figures(beside, "minutes"), "tiny-typical")["typicality"]) == len(images)
    assert max(point["per_second"] for point in now["past"]) > 0


def test_unknown_time_is_refused(beside: str) -> None:
    assert figures(beside, "ever") == {
        "error": {"code": "bad_parameter", "message": "since must be one of start, minutes, got 'ever'"}
    }


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


def state_of(page: Page) -> str:
    page.locator("#state[data-state]").wait_for()
    return page.locator("#state").inner_text()


def eventually(page: Page, words: str) -> None:
    page.get_by_role("status").get_by_text(words).wait_for()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_and_axe_finds_nothing(
    chromium: Browser, server: Server, beside: str, images: list[bytes], dark: bool, width: int
) -> None:
    httpx.post(f"{server.url}/predictions/tiny-typical", content=images[0], timeout=60, trust_env=False)
    with opened(chromium, beside + HEALTH, dark=dark, width=width) as page:
        assert state_of(page) == "✓ Ready: every worker of every model can answer."
        assert page.title().startswith("Ready ")
        page.get_by_role("img", name=re.compile("Typicality of .* images by tenths")).first.wait_for()
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        found = violations(page)

    assert found == []
    assert over == 0


@needs_chromium
def test_page_follows_the_server_and_keeps_what_is_there(
    chromium: Browser, server: Server, beside: str, images: list[bytes]
) -> None:
    with opened(chromium, beside + HEALTH) as page:
        card = page.get_by_role("region", name="tiny-typical version 1")
        card.get_by_text("✓ 1 of 1 workers ready").wait_for()
        page.evaluate("() => { window.kept = document.querySelector('.model'); window.said = 0;"
                      "new MutationObserver(() => window.said++).observe(document.getElementById('state'),"
                      "{ childList: true, characterData: true, subtree: true }); }")  # fmt: skip
        for image in images:
            httpx.post(f"{server.url}/predictions/tiny-typical", content=image, timeout=60, trust_env=False)
        card.get_by_text(re.compile(r"\(200: ")).wait_for()
        with page.expect_response(re.compile("since=minutes")):
            page.get_by_label("What is said of images").select_option("minutes")
        assert page.evaluate("() => [window.kept === document.querySelector('.model'), window.said]") == [True, 0]

        mark_draining(Path(server.tmp))
        try:
            eventually(page, "✗ Not ready: not every worker can answer, or the server is about to stop.")
            card.get_by_text("✗ 0 of 1 workers ready").wait_for()
            assert page.title().startswith("Not ready ")
            assert violations(page) == []
        finally:
            (Path(server.tmp) / door._MARK).unlink()
        eventually(page, "✓ Ready")


@needs_chromium
def test_bundles_alone_have_no_server_and_the_page_says_what_to_do(chromium: Browser, typical_dir: Path) -> None:
    with ExitStack() as pages:
        with console(typical_dir) as url:
            page = pages.enter_context(opened(chromium, url + HEALTH))
            assert state_of(page) == "No server: the console asks none."
            assert page.get_by_text("python -m serving start").is_visible()
            assert page.locator("#figures").is_hidden()
            assert violations(page) == []
        eventually(page, "✗ No console: the console has ended.")


@needs_chromium
def test_stopped_server_is_told_and_the_next_one_is_shown(
    chromium: Browser, typical_dir: Path, own_state: Path, tmp_path: Path, images: list[bytes]
) -> None:
    store, ports = tmp_path / "store", ("--port", 0, "--device", "cpu")
    serving("package", typical_dir, "--model-store", store, "--workers", 1, "--threads", 1, check=True)
    begin = ("start", "--model-store", store, "--state", own_state, *ports)
    serving(*begin, check=True)
    with console("--state", own_state) as url, opened(chromium, url + HEALTH) as page:
        eventually(page, "✓ Ready")
        serving("stop", "--state", own_state, check=True)
        eventually(page, "No server")
        assert page.locator("#figures").is_hidden()

        serving(*begin, check=True)
        eventually(page, "✓ Ready")
        page.get_by_role("region", name="tiny-typical version 1").get_by_text("✓ 1 of 1 workers ready").wait_for()


@needs_chromium
def test_metrics_that_do_not_answer_are_told(chromium: Browser, typical_dir: Path) -> None:
    metrics = f"http://127.0.0.1:{free_port()}/metrics"
    with console(typical_dir, "--metrics-url", metrics) as url, opened(chromium, url + HEALTH) as page:
        assert state_of(page) == "✗ No answer: the server does not say how it is."
        assert page.get_by_text(f"the server's metrics must be at {metrics}, got").is_visible()
        assert page.title().startswith("No answer ")
        assert violations(page) == []
