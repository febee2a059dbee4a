"""How long answers can be: worked out before, held against what is sent."""

import random
import string
from typing import Any

import numpy as np
import orjson
import pytest
from conftest import manifest_fields

from serving.answer_size import AnswerSizes
from serving.bundle import Manifest
from serving.errors import AnswerTooLarge, ImageError, ServingError
from serving.limits import Limits
from serving.open_inference import TensorRequest, refuse_tensors
from serving.request import Request
from serving.respond import ALONE, EACH, RETURNABLE, Form, Options, encode, respond_each

LETTERS = string.ascii_letters + 'äß漢"\\\n\x01'
OUTPUTS = ("posterior", "responsibilities", "log_density", "features")
TENSORS = ("label", "posterior", "component", "responsibilities", "log_density", "features")


def manifest_of(labels: list[str], components: int, dim: int, outputs: tuple[str, ...] = OUTPUTS) -> Manifest:
    head = {"kind": "mda", "classes": len(labels), "dim": dim, "components": components}
    return Manifest(**manifest_fields("m", "mda", 1, outputs) | {"labels": labels, "head": head, "sha256": {}})


def most_bytes(manifest: Manifest, request: Request) -> int:
    assert not isinstance(request.images, ServingError)
    head, each = AnswerSizes(manifest, Limits()).of(request)
    return head + len(request.images) * each


def any_manifest(random_: random.Random) -> Manifest:
    labels = {"".join(random_.choices(LETTERS, k=random_.randint(1, 30))) for _ in range(random_.randint(2, 40))}
    outputs = OUTPUTS if random_.random() < 0.7 else ("posterior", "features")
    return manifest_of(sorted({*labels, "a", "b"}), random_.randint(1, 12), random_.randint(1, 60), outputs)


def any_outputs(manifest: Manifest, count: int, rng: np.random.Generator) -> dict[str, Any]:
    head = manifest.head
    outputs = {
        "posterior": rng.dirichlet(np.ones(head.classes), count),
        "responsibilities": rng.dirichlet(np.ones(head.components), (count, head.classes)),
        "log_density": rng.normal(0, 100, count),
        "features": rng.normal(0, 10, (count, head.dim)),
    }
    return {name: outputs[name].astype(np.float32) for name in manifest.outputs}


def any_form(random_: random.Random, manifest: Manifest) -> tuple[Form, Options]:
    if random_.random() < 0.6:
        returns = frozenset(random_.sample(RETURNABLE, random_.randint(0, 3)))
        return EACH, Options(random_.choice((1, 3, 99)), returns)
    names = [name for name in TENSORS if name in ("label", "posterior", "features") or len(manifest.outputs) == 4]
    wanted = tuple(random_.sample(names, random_.randint(1, len(names)))) if random_.random() < 0.5 else None
    tensors = TensorRequest([], random_.choice((None, "7", "i" * 5000)), wanted)
    return Form(tensors.respond, refuse_tensors), tensors.options


@pytest.mark.parametrize("seed", range(60))
def test_no_answer_is_longer_than_the_bound_and_most_are_not_much_shorter(seed: int) -> None:
    random_, rng = random.Random(seed), np.random.default_rng(seed)
    manifest, count = any_manifest(random_), random_.choice((1, 2, 30))
    form, options = any_form(random_, manifest)
    request = Request([b""] * count, options, form)

    answers = encode(any_outputs(manifest, count, rng), manifest, [options] * count)
    sent = len(orjson.dumps(request.reply(answers)[1]))
    bound = most_bytes(manifest, request)
    assert sent <= bound
    assert bound <= 2.2 * sent + 1024 * count  # a number may need twice as many characters; an error, a thousand


def test_the_longest_numbers_and_labels_are_within_the_bound_too() -> None:
    manifest = manifest_of(["x", "y" * 50, "z"], 12, 5)
    outputs = {
        "posterior": np.array([[1e-5, 1.234567e-5, 3.402823e-38]]),
        "responsibilities": np.full((1, 3, 12), 1.234567e-5),
        "log_density": np.array([-1.234567e15]),
        "features": np.array([[-3.402823e38, -1.175494e-38, 9.999999e15, -1.234567e-5, 1e16]]),
    }
    options = Options(3, frozenset(RETURNABLE))
    request = Request([b""], options, ALONE)

    answers = encode(outputs, manifest, [options])
    assert len(orjson.dumps(request.reply(answers)[1])) <= most_bytes(manifest, request)


def test_errors_in_the_place_of_answers_are_within_the_bound() -> None:
    manifest = manifest_of(["a", "b"], 1, 1)
    errors = [ImageError('instance must be an object {"b64": "..."}, got ' + "\x01" * 60)] * 200
    request = Request([b""] * 200, Options(1, frozenset()), EACH)

    assert len(orjson.dumps(respond_each(errors)[1])) <= most_bytes(manifest, request)


def test_a_request_is_told_how_many_images_have_short_enough_answers() -> None:
    manifest = manifest_of([f"class {n:03}" for n in range(100)], 60, 16)
    sizes = AnswerSizes(manifest, Limits())
    every = Request([b""] * 256, Options(), EACH)

    with pytest.raises(AnswerTooLarge) as info:
        sizes.check(every)
    each = int(str(info.value).split("images of up to ")[1].split()[0])
    most = (2**24 - 100) // each
    assert str(info.value) == (
        f"answers of one request must have at most 16777216 bytes, got 256 images of up to {each} bytes each: "
        f"send at most {most} images at a time, or ask for less by parameters.return or outputs"
    )
    assert (info.value.status, info.value.code) == (413, "answer_too_large")
    sizes.check(Request([b""] * most, Options(), EACH))
    sizes.check(Request([b""] * 256, Options(returns=frozenset()), EACH))
    sizes.check(Request(ImageError("broken")))


def test_where_one_image_is_too_many_only_less_helps() -> None:
    sizes = AnswerSizes(manifest_of(["a", "b"], 1, 1), Limits(max_response_bytes=1000))

    with pytest.raises(AnswerTooLarge, match=r"got 2 images of up to 1024 bytes each: ask for less by parameters"):
        sizes.check(Request([b""] * 2, Options(), EACH))


def test_the_clients_name_of_a_request_counts() -> None:
    tensors = TensorRequest([], "i" * 2**24, None)
    request = Request([b""], tensors.options, Form(tensors.respond, refuse_tensors))

    with pytest.raises(AnswerTooLarge):
        AnswerSizes(manifest_of(["a", "b"], 1, 1), Limits()).check(request)
