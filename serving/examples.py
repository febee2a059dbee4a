"""What the components of a model look like: thumbnails of training images, in one file of its bundle.

    examples = read_examples(bundle)             # None if it was exported without
    examples.of(7, 2)["nearest"]                 # base64 of up to three WebP images
    examples.add_to(answers, options, labels)    # where a request asks for them

`examples.zip` holds uncompressed entries, each a WebP image of at most `Manifest.examples.side` pixels a side:

    <class>/<component>/mean.webp          the mean of the component's training images, pixel by pixel
    <class>/<component>/nearest-<n>.webp   the training image that is n-th nearest to the component, n from 1

The class is its position in `Manifest.labels`. A component may lack either: the mean where it has so few training
images that the mean would show one of them, the nearest where single images may not be shown or none belongs to it.
The file is of at most `MAX_BYTES`.
"""

import base64
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.bundle import EXAMPLES, Bundle
from serving.errors import BadParameter, BundleError
from serving.parameters import Options

MAX_BYTES = 8 * 1024 * 1024
MOST_CLASSES = 2  # of an answer whose components are shown
ENTRY = re.compile(r"(\d+)/(\d+)/(?:mean|nearest-(\d+))\.webp")

Shown = dict[str, str | list[str]]
"""`mean`, base64 of a WebP image; `nearest`, a list of such, the nearest first. What a component lacks is left out."""


@dataclass(frozen=True)
class Examples:
    """The thumbnails of a bundle.

    Attributes:
        means: of each component, by class and component.
        nearest: its nearest training images, likewise; the nearest comes first.
    """

    means: Mapping[tuple[int, int], bytes]
    nearest: Mapping[tuple[int, int], tuple[bytes, ...]]

    def of(self, label: int, component: int) -> Shown:
        """What there is to see of a component of the class at a position."""
        shown: Shown = {}
        if (mean := self.means.get((label, component))) is not None:
            shown["mean"] = _text(mean)
        if nearest := self.nearest.get((label, component)):
            shown["nearest"] = [_text(one) for one in nearest]
        return shown

    def add_to(self, answers: Sequence[dict[str, Any]], options: Sequence[Options], labels: Sequence[str]) -> None:
        """Put into the answers to images whose options ask for it the examples of the first two classes in `top_k`.

        Args:
            answers: as `respond.encode` makes them.
            options: the client's choices for each image.
            labels: of the model.
        """
        for answer, one in zip(answers, options, strict=True):
            if "examples" in one.returns:
                likeliest = answer["top_k"][:MOST_CLASSES]
                answer["examples"] = [self._of_candidate(candidate, labels) for candidate in likeliest]

    def _of_candidate(self, candidate: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        label, component = candidate["label"], candidate["component"]
        return {"label": label, "component": component, **self.of(labels.index(label), component)}

    def longest(self) -> Shown:
        """The longest that `of` can be: by it, how long an answer can be is known before it is made."""
        components = self.means.keys() | self.nearest.keys()
        return max((self.of(*one) for one in components), key=lambda shown: len(str(shown)), default={})


def read_examples(bundle: Bundle) -> Examples | None:
    """The examples of a bundle, all of them in memory; None if it has none.

    Raises:
        BundleError: if the file is larger than it may be, or holds anything else.
    """
    if bundle.manifest.examples is None:
        return None
    file, head = bundle.path / EXAMPLES, bundle.manifest.head
    if (size := file.stat().st_size) > MAX_BYTES:
        raise BundleError(f"{file} must have at most {MAX_BYTES} bytes, got {size}")
    means: dict[tuple[int, int], bytes] = {}
    nearest: dict[tuple[int, int], dict[int, bytes]] = {}
    try:
        with zipfile.ZipFile(file) as entries:
            for info in entries.infolist():
                label, component, number = _place(info)
                if label >= head.classes or component >= head.components:
                    raise ValueError(f"an entry {info.filename} of no component")
                if number is None:
                    means[label, component] = entries.read(info)
                else:
                    nearest.setdefault((label, component), {})[number] = entries.read(info)
    except (zipfile.BadZipFile, ValueError) as exc:
        raise BundleError(f"{file} must be a zip file of thumbnails of components, got {exc}") from exc
    return Examples(means, {at: tuple(found[n] for n in sorted(found)) for at, found in nearest.items()})


def check_examples(options: Options, examples: Examples | None, name: str) -> None:
    """Refuse examples of a model that has none.

    Args:
        options: of a request.
        examples: of the model's bundle.
        name: of the model.

    Raises:
        BadParameter: which says how the model would have them.
    """
    if "examples" in options.returns and examples is None:
        raise BadParameter(f"return must be without examples, as {name} has none: export it anew with --examples")


def entry_name(label: int, component: int, number: int | None) -> str:
    """Name of the entry of a component's nearest training image, numbered from 1; without a number, of its mean."""
    return f"{label}/{component}/{'mean' if number is None else f'nearest-{number}'}.webp"


def _place(info: zipfile.ZipInfo) -> tuple[int, int, int | None]:
    """Class, component and number of an entry; no number for a mean."""
    found = ENTRY.fullmatch(info.filename)
    if found is None or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"an entry {info.filename!r}, or one that is compressed")
    label, component, number = found.groups()
    return int(label), int(component), None if number is None else int(number)


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode("ascii")
