"""More classes: an untrained trunk with heads of 10, 100 and 1,000 of them, in one server.

    python -m load_tests growth --only classes

The work is what the bare graph takes, in as many processes and threads as infer at a time in the server.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from load_tests.asked.sent_images import Sent, encode_image, shape
from load_tests.bare import Layout, bare_runtime
from load_tests.growth.curve import Reading, Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, rate, warm
from load_tests.served import served
from load_tests.wrk import ask
from serving.bundle import Bundle
from serving.cores import cores, threads
from serving.settings import DEFAULT_SETTINGS

COUNTS = (10, 100, 1000)
CONNECTIONS = 8
SIDE, DIM = 28, 32
TRUNK = "six-conv"
SERVED = "served"


def untrained(classes: int, folder: Path, trunk: str = TRUNK) -> Path:
    """The bundle of a classifier that has learned nothing, with a head of so many classes.

    Args:
        classes: C.
        folder: that gets it.
        trunk: the kind of the encoder, which is the same whatever C is.
    """
    import torch  # not in every command of `load_tests`

    from serving.bundle import InputSpec
    from training.classifier import Architecture, build_classifier
    from training.export import golden_images, write_bundle
    from training.images import Labelled
    from training.recipe import EncoderSpec, HeadSpec

    torch.manual_seed(0)
    encoder = EncoderSpec.model_validate({"kind": trunk, "dim": DIM})
    classifier = build_classifier(Architecture((1, SIDE, SIDE), classes, encoder, HeadSpec(kind="lda"))).eval()
    images = golden_images((1, SIDE, SIDE))
    classifier.learn_normalisation(images)
    bundle = write_bundle(
        folder / f"classes-{classes}" / "1",
        classifier,
        Labelled(images, torch.arange(len(images)) % classes),
        labels=tuple(f"class-{number}" for number in range(classes)),
        input=InputSpec(channels=1, height=SIDE, width=SIDE),
        recipe={},
        dataset={"name": "none", "splits": {"test": len(images)}, "fingerprint": "0" * 64},
    )
    return bundle.path


def measure(setting: Setting, counts: Sequence[int] = COUNTS, trunk: str = TRUNK) -> Rounds:
    """Ask each model in turn, and its bare graph right before."""
    bundles = {count: Bundle.load(untrained(count, setting.folder, trunk)) for count in counts}
    of_one = threads(DEFAULT_SETTINGS)
    layout = Layout(max(1, cores() // of_one), of_one)
    image = setting.folder / "image"
    image.write_bytes(encode_image(Sent.shape, bundles[counts[0]]))
    with served(*(bundle.path for bundle in bundles.values())) as up:
        for bundle in bundles.values():
            warm(up.url(bundle.manifest.name), image, CONNECTIONS, setting.seconds)
        while True:
            readings: list[Reading] = []
            for count, bundle in bundles.items():
                images = np.repeat(shape(bundle)[None], CONNECTIONS, 0)
                bare, _ = bare_runtime(bundle, layout, images, CONNECTIONS, setting.seconds)
                load = ask(up.url(bundle.manifest.name), image, CONNECTIONS, setting.seconds)
                readings.append(rate(SERVED, count, load, setting.seconds, work=1 / bare))
            yield readings


DIMENSION = Dimension(
    "classes",
    "10, 100 and 1,000 classes on the same untrained trunk",
    (Shape(SERVED, "classes", "answers/s", "time of the bare graph", is_rate=True),),
    measure,
    asks=9,
    once_s=60,
    has_bundle=False,
)
