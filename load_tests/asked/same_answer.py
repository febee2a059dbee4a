"""Whether an answer under load is the one that the same request got alone.

    problem = differs(alone, under_load, tolerance=1e-4)  # None if it is the same

Compared are labels, probabilities, the model's name, how many candidates `top_k` has, and the codes of errors.
Log-density and typicality have scales of their own, and come from the same features as the probabilities.

An image's pixels reach the graph the same in every batch, a photo's too, for decoding and resizing know no neighbours.
Only the graph's sums may differ: their order depends on how many images are in a batch. On a CPU, in float32 and int8,
no probability was seen to move by more than 5e-7 under load, and none of a photo by more; so a difference of 1e-4 is a
defect, whatever the image. A graph in float16, or on a GPU, may need more: `--tolerance`. Where the two likeliest
labels are that near, either is right.
"""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
TOLERANCE = 1e-4  # of probabilities


def differs(right: Json, got: Json, tolerance: float = TOLERANCE) -> str | None:
    """What is wrong with a body, if anything, given the one that is right.

    Args:
        right: an answer, `predictions`, tensors of the Open Inference Protocol, or an `error`.
        got: likewise.
        tolerance: how far probabilities may be apart.
    """
    try:
        if "error" in right or "error" in got:
            return _unequal("answer", _outcome(right), _outcome(got))
        if "predictions" in right:
            return _lists_differ(right["predictions"], got["predictions"], tolerance)
        if "outputs" in right:
            return _lists_differ(_rows(right), _rows(got), tolerance)
        return _answers_differ(right, got, tolerance)
    except (KeyError, TypeError, AttributeError, IndexError) as exc:
        return f"answer must have the parts of the one alone, got one without {exc}"


def code_of(body: Json) -> str | None:
    """The error's code in a body of either protocol, or None where there is no error."""
    error = body.get("error", {})
    code: str | None = error.partition(":")[0] if isinstance(error, str) else error.get("code")
    return code


def _answers_differ(right: Json, got: Json, tolerance: float) -> str | None:
    problem = _unequal("model", right["model"]["name"], got["model"]["name"])
    if problem is None and "top_k" in right:
        problem = _unequal("length of top_k", len(right["top_k"]), len(got["top_k"]))
    if problem is None and "probabilities" not in right:
        return _unequal("label", right["label"], got["label"])
    return problem or _probabilities_differ(right, got, tolerance)


def _probabilities_differ(right: Json, got: Json, tolerance: float) -> str | None:
    shares = right["probabilities"]
    if right["label"] != got["label"]:
        *_, second, likeliest = sorted(shares.values())
        if likeliest - second > tolerance:
            return _unequal("label", right["label"], got["label"])
    apart = max(abs(got["probabilities"][name] - share) for name, share in shares.items())
    if not apart <= tolerance:
        return f"probabilities must be as asked alone to {tolerance:g}, got a difference of {apart:.0e}"
    return None


def _lists_differ(right: list[Any], got: list[Any], tolerance: float) -> str | None:
    if len(right) != len(got):
        return _unequal("number of answers", len(right), len(got))
    for position, (one, other) in enumerate(zip(right, got, strict=True)):
        problem = differs(one, other, tolerance)
        if problem is not None:
            return f"image {position}: {problem}"
    return None


def _rows(body: Json) -> list[Json]:
    """Tensors, as one answer an image."""
    tensors = {tensor["name"]: tensor for tensor in body["outputs"]}
    labels, posterior = tensors["label"]["data"], tensors["posterior"]
    classes = posterior["shape"][1]
    starts = range(0, len(posterior["data"]), classes)
    rows = [dict(enumerate(posterior["data"][start : start + classes])) for start in starts]
    model = {"name": body["model_name"]}
    return [{"label": label, "probabilities": row, "model": model} for label, row in zip(labels, rows, strict=True)]


def _outcome(body: Json) -> str:
    return f"the error {code_of(body)}" if "error" in body else body.get("label", "one without an error")


def _unequal(what: str, right: object, got: object) -> str | None:
    return None if right == got else f"{what} must be {right}, got {got}"
