"""What every peer's server does with a batch of images, so that nothing but the server around it differs.

    bundle, precision, port, cores = read_arguments()
    predictor = open_predictor(bundle, precision, threads=cores)
    bodies = answer(predictor, images)

Run by the peers' own Python; it imports nothing but `serving` and what that needs.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.bundle import Precision
from serving.errors import ServingError
from serving.parameters import DEFAULT_OPTIONS
from serving.predictor import Predictor
from serving.respond import error_body

WORKERS, WAIT_MS = "PEER_WORKERS", "PEER_WAIT_MS"  # in a peer's environment, for its variants
Decoded = NDArray[np.uint8] | ServingError


class Arguments(NamedTuple):
    """What `peer.module_command` passes on."""

    bundle: Path
    precision: Precision
    port: int
    cores: int


def read_arguments(given: Sequence[str] | None = None) -> Arguments:
    """Those of the command line."""
    bundle, precision, port, cores = (sys.argv[1:] if given is None else given)[:4]
    return Arguments(Path(bundle), precision, int(port), int(cores))  # type: ignore[arg-type]


def workers_and_threads(cores: int) -> tuple[int, int]:
    """How many processes infer, `PEER_WORKERS` or one, and the threads of each: the cores are shared among them."""
    workers = int(os.environ.get(WORKERS, "1"))
    return workers, max(1, cores // workers)


def wait_ms(default: int) -> int:
    """How long a batch waits for more requests: `PEER_WAIT_MS`, or the default."""
    return int(os.environ.get(WAIT_MS, str(default)))


def open_predictor(bundle: Path, precision: Precision, threads: int) -> Predictor:
    """A warm predictor on the CPU."""
    predictor = Predictor.open(bundle, threads=threads, precision=precision)
    predictor.warm_up()
    return predictor


def decode(predictor: Predictor, image: bytes) -> Decoded:
    """One image as the graph takes it, or what is wrong with it."""
    try:
        return predictor.decode(image)
    except ServingError as error:
        return error


def answer_decoded(predictor: Predictor, decoded: Sequence[Decoded]) -> list[bytes]:
    """The JSON of each image's answer or error, by one call of the graph."""
    good = [image for image in decoded if not isinstance(image, ServingError)]
    answers = iter(predictor.encode(predictor.infer(np.stack(good)), [DEFAULT_OPTIONS] * len(good)) if good else ())
    return [orjson.dumps(error_body(one) if isinstance(one, ServingError) else next(answers)) for one in decoded]


def answer(predictor: Predictor, images: Sequence[bytes]) -> list[bytes]:
    """The JSON of each image's answer or error, in order."""
    return answer_decoded(predictor, [decode(predictor, image) for image in images])
