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
from serving.held_out import HeldOut
from serving.limits import Limits
from serving.open_inference import TensorRequest, refuse_tensors
from serving.parameters import RETURNABLE, Accept, Options
from serving.request import Request
from serving.respond import ALONE, EACH, Form, encode, respond_each

LETTERS = string.ascii_letters + 'äß漢"\\\n\x01'
OUTPUTS = ("posterior", "responsibilities", "log_density", "features")
SCORED = ("posterior", "responsibilities", "log_density", "typicality_score", "features")
TENSORS = ("label", "posterior", "component", "component_name", "responsibilities", "log_density", "features")


def manifest_of(labels: list[str], components: int, dim: int, outputs: tuple[str, ...] = OUTPUTS) -> Manifest:
    head = {"kind": "mda", "classes": len(labels), "dim": dim, "components": components}
    held_out = {"images": 80_999, "by": "split"} if "typicality_score" in outputs else None
    own = {"labels": labels, "head": head, "sha256": {}, "held_out": held_out}
    return Manifest(**manifest_fields("m", "mda", 1, outputs) | own)


def most_bytes(manifest: Manifest, request: Request) -> int:
    assert not isinstance(request.images, ServingError)
    head, each = AnswerSizes(manifest, Limits()).of(request)
    return head + len(request.images) * each


def any_manifest(random_: random.Random) -> Manifest:
    labels = {"".join(random_.choices(LETTERS, k=random_.randint(1, 30))) for _ in range(random_.randint(2, 40))}
    outputs = random_.choice((OUTPUTS, OUTPUTS, SCORED, SCORED, ("posterior", "features")))
    manifest = manifest_of(sorted({*labels, "a", "b"}), random_.randint(1, 12), random_.randint(1, 60), outputs)
    names = {
        label: {
            random_.randrange(manifest.head.components): "".join(random_.choices(LETTERS, k=random_.randint(1, 99)))
        }
        for label in manifest.labels
        if random_.random() < 0.5
    }
    return manifest.model_copy(update={"component_names": names if random_.random() < 0.5 else {}})


def held_out_of(manifest: Manifest) -> HeldOut | None:
    """With so many images that typicalities are long, and with sets of any size at a coverage of up to a half."""
    if manifest.held_out is None:
        return None
    scores = np.sort(np.random.default_rng(0).normal(size=80_999)).astype(np.float32)
    return HeldOut(scores, np.array([0.05], np.float32), np.array([0]), np.zeros(manifest.head.classes, int))


def any_outputs(manifest: Manifest, count: int, rng: np.random.Generator) -> dict[str, Any]:
    head = manifest.head
    outputs = {
        "posterior": rng.dirichlet(np.ones(head.classes), count),
        "responsibilities": rng.dirichlet(np.ones(head.components), (count, head.classes)),
        "log_density": rng.normal(0, 100, count),
        "typicality_score": rng.normal(-2, 1, count),
        "features": rng.normal(0, 10, (count, head.dim)),
    }
    return {name: outputs[name].astype(np.float32) for name in manifest.outputs}


def any_form(random_: random.Random, manifest: Manifest) -> tuple[Form, Options]:
    coverage = random_.choice((None, 0.4999999999999999, 1.2345678901234567e-300)) if manifest.held_out else None
    if random_.random() < 0.6:
        returns = frozenset(random_.sample(RETURNABLE, random_.randint(0, 3)))
        accept = random_.choice((None, Accept(0.9), Accept(0.9, 0.5) if manifest.held_out else Accept(1.0)))
        return EACH, Options(random_.choice((1, 3, 99)), returns, coverage=coverage, accept=accept)
    of_mixtures = () if "responsibilities" in manifest.outputs else TENSORS[2:-1]
    names = [name for name in TENSORS if name not in of_mixtures]
    names += ["typicality"] if manifest.held_out else []
    names += ["possible"] if coverage is not None else []
    wanted = tuple(random_.sample(names, random_.randint(1, len(names)))) if random_.random() < 0.5 else None
    tensors = TensorRequest([], random_.choice((None, "7", "i" * 5000)), wanted, coverage)
    return Form(tensors.respond, refuse_tensors), tensors.options


@pytest.mark.parametrize("seed", range(60))
def test_no_answer_is_longer_than_the_bound_and_most_are_not_much_shorter(seed: int) -> None:
    random_, rng = random.Random(seed), np.random.default_rng(seed)
    manifest, count = any_manifest(random_), random_.choice((1, 2, 30))
    form, options = any_form(random_, manifest)
    request = Request([b""] * count, options, form)

    answers = encode(any_outputs(manifest, count, rng), manifest, [options] * count, held_out_of(manifest))
    sent = len(orjson.dumps(request.reply(answers)[1]))
    bound = most_bytes(manifest, request)
    assert sent <= bound
    of_sets = sum(len(orjson.dumps(label)) + 2 for label in manifest.labels) if options.coverage else 0
    of_names = 600 * (1 + min(options.top_k, manifest.head.classes)) if manifest.component_names else 0
    spare = 1024 + of_sets + of_names  # of an image: an error, a set of all labels, names of a hundred characters
    assert bound <= 2.2 * sent + spare * count  # a number may need twice as many characters


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


def test_a_tensor_of_labels_none_of_which_is_possible_is_within_the_bound() -> None:
    manifest = manifest_of([f"class {n:03}" for n in range(400)], 1, 1, SCORED)
    outputs = any_outputs(manifest, 1, np.random.default_rng(0))
    tensors = TensorRequest([], None, ("possible",), 0.5)
    request = Request([b""], tensors.options, Form(tensors.respond, refuse_tensors))

    answers = encode(outputs, manifest, [tensors.options], held_out_of(manifest))
    assert sum(request.reply(answers)[1]["outputs"][0]["data"]) < 10
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
