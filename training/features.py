"""The features of a frozen backbone: extracted once, kept in cache/features/<key>/, and a head trained on them alone.

The key is the SHA-256 of the backbone: its weights, their normalisation and the engine that computes it. There is a
file for every shard of the images, named after their digests and their preprocessing: an extraction that was broken off
goes on where it was, and of images that come later only their shards are extracted. Only the head is trained, by the
same loop as everything else: for it the features are images (N, P, 1, 1), which a classifier without an encoder takes
as they are.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.bundle import InputSpec
from training.backbones import require_backbone
from training.classifier import Classifier
from training.data import Dataset, as_served
from training.encoders import Encoder
from training.extraction import Extractor, engine_of, open_extractor
from training.files import replace_file
from training.image_files import ImageFiles, Images, digests_of, images_at_once
from training.progress import say, steps

SHARD_IMAGES = 256  # of images that come without shards

Features = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureCache:
    """The features that a frozen backbone makes and has made.

    Attributes:
        kind: its name.
        extract: uint8 (n, channels, H, W) of the size that the backbone takes, on the CPU, to float32 (n, P).
        folder: where the features are kept.
    """

    kind: str
    extract: Callable[[Tensor], Features]
    folder: Path

    def save(self, digests: NDArray[np.uint8], spec: InputSpec, features: Features) -> None:
        """Keep the features of images with these digests, which `spec` has made into what the backbone takes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._file(digests, spec), lambda out: np.save(out, features))

    def load(self, digests: NDArray[np.uint8], spec: InputSpec) -> Features | None:
        """Read them, memory-mapped; None if they are not there."""
        try:
            features: Features = np.load(self._file(digests, spec), mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not there, or broken off by a crash of the machine
            return None
        return features

    def _file(self, digests: NDArray[np.uint8], spec: InputSpec) -> Path:
        sha = hashlib.sha256(json.dumps(spec.model_dump(), sort_keys=True).encode())
        sha.update(digests.tobytes())
        return self.folder / f"{sha.hexdigest()}.npy"


def open_features(classifier: Classifier, root: Path) -> FeatureCache:
    """The features that a classifier's trunk, a frozen backbone, makes of images; `root` is the folder of the cache."""
    device, kind, sha = classifier.mean.device, classifier.architecture.encoder.kind, hashlib.sha256()
    state = classifier.encoder.trunk.state_dict() | {"mean": classifier.mean, "std": classifier.std}
    for name, value in sorted(state.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.cpu().contiguous().numpy().tobytes())
    sha.update(f"{kind} by {engine_of(device)}".encode())

    @functools.cache  # opened only if there is something to extract
    def extractor() -> Extractor:
        return open_extractor(classifier, device)

    return FeatureCache(kind, lambda images: extractor()(images), root / "features" / sha.hexdigest())


def features_of(cache: FeatureCache, dataset: Dataset) -> Features:
    """The features of every image of a data set, from the cache as far as they are there.

    Args:
        cache: of the backbone.
        dataset: images of any size; they are made into `dataset.input` as a server does it, a batch at a time.

    Returns:
        float32 (N, P), memory-mapped, to read.
    """
    images, spec = dataset.images, dataset.input
    digests, shards = digests_of(images), _shards_of(images)
    missing = [shard for shard in shards if cache.load(digests[shard], spec) is None]
    count = sum(shard.stop - shard.start for shard in missing)
    say(f"features of {cache.kind}: {_in_words(len(images), count)} {cache.folder}")
    with steps(f"features of {cache.kind}", len(images), len(images) - count, images=True) as bar:
        for shard in missing:
            made = []
            for batch in images[torch.arange(shard.start, shard.stop)].split(images_at_once(spec)):
                made.append(cache.extract(as_served(batch, spec)))
                bar.advance(len(batch))
            cache.save(digests[shard], spec, np.concatenate(made))
    return _joined(cache, [digests[shard] for shard in shards], spec)


def _shards_of(images: Images) -> list[slice]:
    sizes = images.shards if isinstance(images, ImageFiles) else ()
    stops = list(accumulate(sizes)) or [*range(SHARD_IMAGES, len(images), SHARD_IMAGES), len(images)]
    return [slice(start, stop) for start, stop in pairwise([0, *stops])]


def _in_words(images: int, missing: int) -> str:
    if not missing:
        return "reusing"
    return f"{missing:,} images into" if missing == images else f"{missing:,} of {images:,} images into"


def _joined(cache: FeatureCache, shards: Sequence[NDArray[np.uint8]], spec: InputSpec) -> Features:
    """The features of all shards in a file without a name, which is gone with the array."""
    count, dim = sum(map(len, shards)), 0
    with tempfile.TemporaryFile(dir=cache.folder) as file:
        for digests in shards:
            features = cache.load(digests, spec)
            if features is None:
                raise FileNotFoundError(f"{cache.folder} must keep what was extracted: something has emptied it")
            dim = features.shape[1]
            file.write(features.tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(count, dim))


def as_images(features: Features) -> Tensor:
    """Features (N, P), read into memory, as images (N, P, 1, 1) of a `head_stage`."""
    return torch.from_numpy(np.array(features))[:, :, None, None]


def head_stage(classifier: Classifier) -> Classifier:
    """All that follows the trunk as a classifier of features (N, P, 1, 1): what is left to train."""
    whole = classifier.architecture
    pooled = require_backbone(whole.encoder.kind).dim
    spec = whole.encoder.model_copy(update={"kind": "linear"})
    architecture = replace(whole, image_shape=(pooled, 1, 1), encoder=spec)
    stage = Classifier(architecture, Encoder(nn.Flatten(), classifier.encoder.projection), classifier.head)
    stage.take_calibration(classifier)
    return stage.to(classifier.mean.device)


def joined(classifier: Classifier, trained: Classifier) -> Classifier:
    """The backbone of `classifier` with the projection, head and calibration of a trained `head_stage`."""
    whole, stage = classifier.architecture, trained.architecture
    spec = whole.encoder.model_copy(update={"dim": stage.encoder.dim})
    architecture = replace(whole, encoder=spec, head=stage.head)
    result = Classifier(architecture, Encoder(classifier.encoder.trunk, trained.encoder.projection), trained.head)
    result.mean.copy_(classifier.mean)
    result.std.copy_(classifier.std)
    result.take_calibration(trained)
    return result.to(classifier.mean.device)
