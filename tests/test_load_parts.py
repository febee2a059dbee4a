"""What the load test is made of: kinds of requests, answers compared, mixes, objectives, shapes, figures."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from load_tests.asked.kinds import EVERY_KIND, Kind, WrongAlone, make_asks
from load_tests.asked.pictures import camera_photo
from load_tests.asked.same_answer import differs
from load_tests.users.figures import Figures
from load_tests.users.mix import FileError, read_mix
from load_tests.users.shapes import SHAPES
from load_tests.users.slos import judge, read_slos
from serving.torchserve.launch import Server

ROOT = Path(__file__).resolve().parents[1]


def test_every_kind_is_known_and_judged(server: Server) -> None:
    asks = make_asks(server.url, "tiny-mda", EVERY_KIND)

    of_kind: dict[str, dict[bytes, Any]] = {kind.value: {} for kind in Kind}
    for ask in asks:
        of_kind[ask.kind][ask.body] = ask
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        for kind, different in of_kind.items():
            assert different, f"{kind} is never asked"
            one, *others = different.values()
            response = client.post(one.path, content=one.body, headers=one.headers)

            assert one.check(response.status_code, response.content) is None
            assert "status must be" in str(one.check(500, response.content))
            assert one.check(response.status_code, b"") is not None
            if response.status_code == 200 and len(others) > 2:  # the answer to one image is wrong for another
                assert any(other.check(200, response.content) is not None for other in others)


def test_asks_come_as_often_as_they_weigh(server: Server) -> None:
    asks = make_asks(server.url, "tiny-mda", {"png": 3, "corrupt": 1, "webp": 0})

    counts = Counter(ask.kind for ask in asks)

    assert set(counts) == {"PNG", "corrupt image"}
    assert counts["PNG"] == 3 * counts["corrupt image"]
    assert asks == sorted(asks, key=asks.index)
    assert [ask.kind for ask in asks] != sorted(ask.kind for ask in asks)  # shuffled


def test_a_kind_or_server_that_is_not_there_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match=r"a kind of request must be one of png, jpeg, .*, got 'gif'"):
        make_asks(server.url, "tiny-mda", {"gif": 1})
    with pytest.raises(ValueError, match=r"a mix must have a kind with a weight above 0, got \{'png': 0\}"):
        make_asks(server.url, "tiny-mda", {"png": 0})
    with pytest.raises(WrongAlone, match=r"PNG at /predictions/nobody, asked alone, must be 200 .*, got 404"):
        make_asks(server.url, "nobody", {"png": 1})


@pytest.mark.parametrize(("megapixels", "size"), [(2, (1600, 1200)), (12, (4000, 3000))])
def test_photos_are_as_large_as_their_kind_says(tmp_path: Path, megapixels: int, size: tuple[int, int]) -> None:
    first, second = (camera_photo(megapixels, seed) for seed in (0, 1))
    (tmp_path / "photo").write_bytes(first)

    with Image.open(tmp_path / "photo") as opened:
        assert (opened.format, opened.size) == ("JPEG", size)
    assert first != second


def answer(label: str = "cross", model: str = "m", **probabilities: float) -> dict[str, Any]:
    shares = probabilities or {"circle": 0.3, "cross": 0.7}
    return {"label": label, "probabilities": shares, "top_k": [{}, {}], "model": {"name": model, "version": "1"}}


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (answer(), None),
        (answer(circle=0.30009, cross=0.69991), None),
        (
            answer(circle=0.3002, cross=0.6998),
            "probabilities must be as asked alone to 0.0001, got a difference of 2e-04",
        ),
        (answer("circle"), "label must be cross, got circle"),
        (answer(model="other"), "model must be m, got other"),
        (answer() | {"top_k": [{}]}, "length of top_k must be 2, got 1"),
        ({"error": {"code": "overloaded"}}, "answer must be cross, got the error overloaded"),
        ({"label": "cross"}, "answer must have the parts of the one alone, got one without 'model'"),
    ],
)
def test_an_answer_is_the_same_or_it_is_said_why_not(got: dict[str, Any], problem: str | None) -> None:
    assert differs(answer(), got) == problem


def test_of_two_labels_that_are_as_likely_either_is_right() -> None:
    assert differs(answer(circle=0.49999, cross=0.50001), answer("circle", circle=0.50001, cross=0.49999)) is None


def test_several_answers_are_compared_one_by_one() -> None:
    corrupt = {"error": {"code": "undecodable_image", "message": ""}}
    right = {"predictions": [answer(), corrupt]}

    assert differs(right, {"predictions": [answer(), corrupt]}) is None
    assert differs(right, corrupt) == "answer must be one without an error, got the error undecodable_image"
    assert differs(right, {"predictions": [answer()]}) == "number of answers must be 2, got 1"
    assert differs(right, {"predictions": [corrupt, answer()]}) == (
        "image 0: answer must be cross, got the error undecodable_image"
    )
    assert differs(right, {"predictions": [answer(), answer()]}) == (
        "image 1: answer must be the error undecodable_image, got cross"
    )


def test_tensors_are_compared_row_by_row() -> None:
    def tensors(labels: list[str], posterior: list[float]) -> dict[str, Any]:
        shares = {"name": "posterior", "shape": [2, 2], "data": posterior}
        return {"model_name": "m", "outputs": [{"name": "label", "shape": [2], "data": labels}, shares]}

    right = tensors(["a", "b"], [0.9, 0.1, 0.2, 0.8])

    assert differs(right, json.loads(json.dumps(right))) is None
    assert differs(right, tensors(["a", "a"], [0.9, 0.1, 0.8, 0.2])) == "image 1: label must be b, got a"
    assert str(differs(right, tensors(["a", "b"], [0.8, 0.2, 0.2, 0.8]))).startswith("image 0: probabilities must be")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models]\nm = 1\n[kinds]\npgn = 1", "kinds.pgn must be one of the keys png, .*did you mean 'png'"),
        ("[models]\nm = 1\n[kinds]\npng = -1", "kinds.png must be greater than or equal to 0, got -1"),
        ("[models]\nm = 1\n[kinds]\npng = 0.5", "kinds.png must be a valid integer, got 0.5"),
        ("[models]\nm = 0\n[kinds]\npng = 1", r"models must have a weight above 0, got \{'m': 0\}"),
        ("[models]\nm = 1\n[kinds]", "kinds must have a weight above 0, got none"),
        ("[kinds]\npng = 1", "models must be given, got nothing"),
        ("png", "--mix must be a file of valid TOML, got "),
    ],
)
def test_a_mix_says_what_is_wrong_with_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mix.toml"
    file.write_text(text)

    with pytest.raises(FileError, match=message):
        read_mix(file)


def test_models_of_the_command_line_take_the_place_of_those_of_the_mix() -> None:
    assert read_mix(models=["a", "b"]).models == {"a": 1, "b": 1}
    assert read_mix().models == {"mnist-mda": 1}
    assert set(read_mix().weights) == set(Kind.__members__)


def figures(**changes: Any) -> Figures:
    values = {"count": 1000, "failed": 2, "error_rate": 0.002, "requests_per_second": 50.0, "max_ms": 1500.0}
    latencies = {"p50_ms": 20.0, "p95_ms": 41.25, "p99_ms": 43.0}
    return Figures(**{**values, **latencies, "histogram": {}, **changes})


def test_objectives_say_what_was_asked_and_got(tmp_path: Path) -> None:
    file = tmp_path / "slo.toml"
    file.write_text(
        "[all]\nerror_rate = 0.001\nrequests_per_second = 50\n[png]\np99_ms = 100\np95_ms = 41\n[webp]\np50_ms = 1\n"
    )

    verdicts = judge(read_slos(file), figures(), {"PNG (a)": figures(), "PNG (b)": figures(p99_ms=1234.4, p95_ms=1)})

    assert [verdict.text for verdict in verdicts] == [
        "error rate of all requests must be at most 0.1 %, got 0.2 %: broken",
        "right answers a second of all requests must be at least 50, got 50: held",
        "p95 of PNG (a) must be at most 41 ms, got 41.2 ms: broken",
        "p99 of PNG (a) must be at most 100 ms, got 43 ms: held",
        "p95 of PNG (b) must be at most 41 ms, got 1 ms: held",
        "p99 of PNG (b) must be at most 100 ms, got 1,234 ms: broken",
        "p50 of WebP must be at most 1 ms, got no request: not judged",
    ]
    assert [verdict.held for verdict in verdicts] == [False, True, False, True, True, False, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[all]\nerror_rate = 2", "all.error_rate must be less than or equal to 1, got 2"),
        ("[png]\np99 = 5", "png.p99 must be one of the keys .*did you mean 'p99_ms'"),
        ("[png]\np99_ms = 'x'", "png.p99_ms must be a valid number, got 'x'"),
        ("[gif]\np99_ms = 1", "gif must be one of the keys all, png"),
    ],
)
def test_objectives_say_what_is_wrong_with_them(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "slo.toml"
    file.write_text(text)

    with pytest.raises(FileError, match=message):
        read_slos(file)


@pytest.mark.parametrize(
    ("shape", "users"),
    [
        ("steady", [10, 20, 40, 40, 40]),
        ("steps", [8, 8, 16, 24, 40]),
        ("spike", [10, 10, 10, 40, 10]),
        ("soak", [1, 4, 40, 40, 40]),
    ],
)
def test_shapes(shape: str, users: list[int]) -> None:
    at = [0, 1, 25, 50, 99]  # of 100 seconds; 10 users more a second

    assert [SHAPES[shape](elapsed, 100, 40, 10) for elapsed in at] == users


LOCUST_COUNTS = """
import json, locust.stats
from load_tests.users.figures import bucket, figures_of
locust.stats.bucket_response_time = bucket
entry = locust.stats.RequestStats().get("PNG", "POST")
for step in range(1000):
    entry.log(0.1234 * 1.01**step, 0)
print(json.dumps(figures_of(entry).as_json()))
"""


def test_percentiles_have_three_digits() -> None:
    command = [sys.executable, "-c", LOCUST_COUNTS]  # locust changes whatever process imports it

    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert found["count"] == sum(found["histogram"].values()) == 1000
    for step, name in ((500, "p50_ms"), (950, "p95_ms"), (990, "p99_ms")):
        assert found[name] == pytest.approx(0.1234 * 1.01**step, rel=0.02)  # half a percent, and a step of one percent
