"""Load test: every form of request, each answer checked, a corrupt image among them.

    locust -f load_tests/locustfile.py --headless --host http://127.0.0.1:8080 -u 8 -t 30s --model mnist-mda

Before the load each image is asked once, alone; under load every answer must be the same again, so an answer that got
another request's image, a lost neighbour of a broken one, or a number that batching changed is a failure. The exit code
is 1 if more than --max-failures of the requests failed.
"""

import base64
import json
import random
from argparse import Namespace
from io import BytesIO
from typing import Any

import requests
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from PIL import Image, ImageDraw

MAX_DIFFERENCE = 1e-4  # of probabilities, between an image answered alone and in a batch
PICTURE_COUNT = 16


def sketch(seed: int) -> bytes:
    """A PNG, JPEG or WebP with a few strokes, of 28 x 28 pixels or larger; every seed another image."""
    random_ = random.Random(seed)
    side = random_.choice((28, 28, 28, 64, 224))
    image = Image.new("L" if seed % 2 else "RGB", (side, side))
    pen = ImageDraw.Draw(image)
    points = [(random_.randrange(side), random_.randrange(side)) for _ in range(random_.randint(3, 5))]
    pen.line(points, fill="white", width=max(2, side // 12), joint="curve")
    out = BytesIO()
    image.save(out, random_.choice(("PNG", "PNG", "JPEG", "WEBP")))
    return out.getvalue()


PICTURES = [sketch(seed) for seed in range(PICTURE_COUNT)]
CORRUPT = PICTURES[0][: len(PICTURES[0]) // 2]
expected: list[dict[str, Any]] = []  # the answer to each picture, asked alone


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options beside locust's own."""
    parser.add_argument("--model", default="mnist-mda", help="model to ask")
    parser.add_argument("--max-failures", type=float, default=0.001, help="share of failed requests that is tolerated")


@events.test_start.add_listener
def ask_alone(environment: Environment, **_: Any) -> None:
    """Learn the right answers from an idle server."""
    url = f"{environment.host}{path(environment.parsed_options)}"
    expected.clear()
    for picture in PICTURES:
        response = requests.post(url, data=picture, timeout=30)
        response.raise_for_status()
        expected.append(response.json())


@events.quitting.add_listener
def summarise(environment: Environment, **_: Any) -> None:
    """Print the figures and set the exit code."""
    total = environment.stats.total
    p50, p95, p99 = (total.get_response_time_percentile(p) or 0 for p in (0.50, 0.95, 0.99))
    allowed = environment.parsed_options.max_failures
    print(
        f"\n{total.num_requests:,} requests, {total.total_rps:,.1f} requests/s, "
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, "
        f"{total.num_failures} failures ({total.fail_ratio:.2%}, allowed {allowed:.2%})"
    )
    environment.process_exit_code = 0 if total.num_requests and total.fail_ratio <= allowed else 1


def path(options: Namespace | None) -> str:
    """Where predictions of the model are asked."""
    return f"/predictions/{options.model if options else 'mnist-mda'}"


def differs(answer: dict[str, Any], index: int) -> str | None:
    """What is wrong with the answer to picture `index`, if anything."""
    right = expected[index]
    if answer.get("label") != right["label"]:
        return f"label must be {right['label']}, got {answer.get('label')} ({answer.get('error')})"
    apart = max(abs(answer["probabilities"][label] - p) for label, p in right["probabilities"].items())
    if apart > MAX_DIFFERENCE:
        return f"probabilities must be as asked alone, got a difference of {apart:.2g}"
    return None


class Client(FastHttpUser):
    """Asks without pause, each request after the answer to the one before."""

    wait_time = constant(0)
    default_headers = {"Accept": "application/json"}  # noqa: RUF012  locust's own attribute

    @task(6)
    def raw_body(self) -> None:
        """One image as the body."""
        index = random.randrange(PICTURE_COUNT)
        with self._post("raw body", data=PICTURES[index]) as response:
            response.failure(problem) if (problem := self._one(response, index)) else response.success()

    @task(2)
    def multipart(self) -> None:
        """One image as a form field, with parameters."""
        index = random.randrange(PICTURE_COUNT)
        form = {"parameters": '{"top_k": 1}'}
        with self._post("multipart", files={"data": ("image", PICTURES[index])}, data=form) as response:
            problem = self._one(response, index)
            if problem is None and len(response.json()["top_k"]) != 1:
                problem = "top_k must have 1 entry, as asked"
            response.failure(problem) if problem else response.success()

    @task(2)
    def json_with_a_corrupt_image(self) -> None:
        """Three images in one request, the one in the middle broken."""
        first, last = random.randrange(PICTURE_COUNT), random.randrange(PICTURE_COUNT)
        images = [PICTURES[first], CORRUPT, PICTURES[last]]
        body = {"instances": [{"b64": base64.b64encode(image).decode()} for image in images]}
        headers = {"Content-Type": "application/json"}
        with self._post("json, 1 of 3 corrupt", data=json.dumps(body), headers=headers) as response:
            response.failure(problem) if (problem := self._three(response, first, last)) else response.success()

    @task(1)
    def corrupt(self) -> None:
        """A broken image alone: 400, and nothing else."""
        with self._post("corrupt", data=CORRUPT) as response:
            right = response.status_code == 400 and response.json()["error"]["code"] == "undecodable_image"
            response.success() if right else response.failure(f"must be 400 undecodable_image, got {response.text}")

    def _post(self, name: str, **request: Any) -> Any:
        options = self.environment.parsed_options
        return self.client.post(path(options), name=name, catch_response=True, **request)

    def _one(self, response: Any, index: int) -> str | None:
        if response.status_code != 200:
            return f"status must be 200, got {response.status_code}: {response.text}"
        return differs(response.json(), index)

    def _three(self, response: Any, first: int, last: int) -> str | None:
        if response.status_code != 200:
            return f"status must be 200, got {response.status_code}: {response.text}"
        answers = response.json()["predictions"]
        if answers[1].get("error", {}).get("code") != "undecodable_image":
            return f"the corrupt image must be answered undecodable_image, got {answers[1]}"
        return differs(answers[0], first) or differs(answers[2], last)
