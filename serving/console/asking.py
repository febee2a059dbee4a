"""One image asked of a model, and what the console adds to the answer for the page.

    asked(backend, knowledge, Served("mnist-mda", 1), image, coverage=0.9)

    {"answer": {...as of /predictions, less the features...},
     "round_trip_s": 0.012,
     "typicality_place": 0.37,        # in the histogram of facts.py
     "plane_place": [1.2, -0.4],      # of the features on the feature plane
     "refused": {"coverage": "coverage must be above 0 and at most 0.98, ..."}}

What a model cannot tell is left out.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.console.backend import Backend, Served
from serving.console.context import Knowledge, Known
from serving.console.facts import typicality_place
from serving.errors import BadParameter
from serving.respond import Answer

RETURNED = ("probabilities", "components")


def asked(
    backend: Backend, knowledge: Knowledge, model: Served, image: bytes, coverage: float | None
) -> dict[str, Any]:
    """Ask a model about one image.

    Args:
        backend: who answers.
        knowledge: of the models.
        model: one of them.
        image: encoded.
        coverage: of the prediction set; None for no set.

    Raises:
        ServerError: if the server does not answer, or refuses the key.
    """
    known = knowledge.of(model)
    wanted: dict[str, Any] = {"return": [*RETURNED, "timings", *(["features"] if _has_plane(known) else [])]}
    if coverage is not None:
        wanted["coverage"] = coverage
    began = time.perf_counter()
    answer, refused = _answered(backend, model, image, wanted)
    seconds = time.perf_counter() - began
    return {"round_trip_s": seconds, "refused": refused, **_placed(answer, known), "answer": answer}


def _answered(
    backend: Backend, model: Served, image: bytes, wanted: Mapping[str, Any]
) -> tuple[Answer, dict[str, str]]:
    """The answer with as much of what is wanted as the model can tell, and why it cannot tell the rest."""
    parameters, refused = dict(wanted), dict[str, str]()
    while True:
        answer = backend.answer(model, image, parameters)
        error = answer.get("error", {})
        name = str(error.get("message", "")).partition(" ")[0]
        if error.get("code") != BadParameter.code or name not in parameters:
            return answer, refused
        refused[name] = error["message"]
        del parameters[name]


def _placed(answer: Answer, known: Known | None) -> dict[str, Any]:
    """Where the answer lies among the held-out images; its features, which are many, are taken out of it."""
    features = answer.pop("features", None)
    placed: dict[str, Any] = {}
    if known is not None and known.held_out is not None and "typicality" in answer:
        placed["typicality_place"] = typicality_place(known.held_out, answer["typicality"])
    if known is not None and known.plane is not None and features is not None:
        placed["plane_place"] = known.plane.places(np.array([features]))[0].tolist()
    return placed


def _has_plane(known: Known | None) -> bool:
    return known is not None and known.plane is not None
