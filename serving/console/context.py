"""What the console knows of a model beside its answers, from the model's bundle.

    knowledge = Knowledge.of_bundles([Bundle.load("model_store/mnist-mda/1")])
    knowledge.of(Served("mnist-mda", 1)).held_out.most_coverage

A server that was begun here has its bundles in the archives that it serves; of one elsewhere, the bundles are here or
nothing is known. What is not known is None, and the pages say so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serving.bundle import Bundle, Manifest
from serving.console.backend import Served
from serving.errors import ServerError
from serving.examples import Examples, read_examples
from serving.held_out import HeldOut
from serving.limits import Limits
from serving.plane import Plane
from serving.settings import DEFAULT_SETTINGS, WorkerSettings
from serving.torchserve.archive import Archive, extracted, read_settings

REMEMBERED = 32  # models


@dataclass(frozen=True)
class Known:
    """A model's bundle without its weights.

    Attributes:
        manifest: of the bundle.
        held_out: what the graph has answered for held-out images, if any were.
        examples: what its components look like, if the bundle says so.
        plane: where its held-out images and its components lie, if the bundle says so.
        limits: what a request may ask of whoever answers.
    """

    manifest: Manifest
    held_out: HeldOut | None
    examples: Examples | None
    plane: Plane | None
    limits: Limits

    @classmethod
    def of(cls, bundle: Bundle, settings: WorkerSettings = DEFAULT_SETTINGS) -> "Known":
        """What a bundle says.

        Args:
            bundle: of the model.
            settings: of who answers with it.

        Raises:
            BundleError: if a file of it holds something else.
        """
        held_out = bundle.held_out(settings.precision)
        return cls(
            bundle.manifest,
            None if held_out is None else HeldOut.read(held_out),
            read_examples(bundle),
            None if bundle.plane is None else Plane.read(bundle.plane),
            settings.limits,
        )


@dataclass(frozen=True)
class Knowledge:
    """What is known of all models.

    Attributes:
        bundles: by version of a model.
        archives: folder of those that a server serves; looked into when a model is first asked about.
    """

    bundles: dict[Served, Known]
    archives: Path | None = None

    @classmethod
    def of_bundles(cls, bundles: Iterable[Bundle]) -> "Knowledge":
        """What bundles say."""
        return cls({Served(one.manifest.name, one.manifest.version): Known.of(one) for one in bundles})

    def of(self, model: Served) -> Known | None:
        """What is known of a version of a model; None if nothing is."""
        if self.archives is None:
            return self.bundles.get(model)
        archive = self.archives / Archive(model.name, model.version).file
        try:
            return _in_archive(archive, archive.stat().st_mtime_ns)
        except (OSError, ServerError):  # taken away a moment ago
            return None


@lru_cache(REMEMBERED)
def _in_archive(archive: Path, written_ns: int) -> Known:
    """What the bundle in an archive says; one that is written anew is read anew."""
    with extracted(archive) as folder:
        return Known.of(Bundle.load(folder), read_settings(archive))
