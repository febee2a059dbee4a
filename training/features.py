"""The features of a frozen backbone: extracted once, kept in cache/features/<key>/, and a head trained on them alone.

The key is the SHA-256 of all that decides the features: the backbone's weights, the preprocessing and the images. Only
the head is trained, by the same loop as everything else: for it the features are images (N, D, 1, 1), which a
classifier without an encoder takes as they are.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.backbones import require_backbone
from training.classifier import Classifier
from training.data import Dataset, as_served
from training.encoders import Encoder
from training.progress import say, track

IMAGES_AT_ONCE = 64  # images; at 224 x 224 ResNet-18 takes about a gigabyte for them


def features_of(classifier: Classifier, dataset: Dataset, root: Path) -> Tensor:
    """The trunk's features of every image, from the cache if they are there.

    Args:
        classifier: its trunk a frozen backbone, in evaluation mode.
        dataset: images of any size; they are made into `dataset.input` as a server does it, a batch at a time.
        root: folder of the cache.

    Returns:
        float32 (N, D, 1, 1) on the CPU, memory-mapped; writing to it does not change the file.
    """
    file = root / "features" / cache_key(classifier, dataset) / "features.npy"
    kind = classifier.architecture.encoder.kind
    if file.is_file():
        say(f"features of {kind}: reusing {file}")
    else:
        say(f"features of {kind}: {len(dataset.images):,} images into {file}")
        _extract(classifier, dataset, file)
    return torch.from_numpy(np.load(file, mmap_mode="c"))[:, :, None, None]


def cache_key(classifier: Classifier, dataset: Dataset) -> str:
    """SHA-256 over the trunk's weights, the preprocessing and the images."""
    sha = hashlib.sha256()
    state = classifier.encoder.trunk.state_dict() | {"mean": classifier.mean, "std": classifier.std}
    for name, value in sorted(state.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.cpu().contiguous().numpy().tobytes())
    about = {
        "kind": classifier.architecture.encoder.kind,
        "input": dataset.input.model_dump(),
        "images": dataset.fingerprint(),
    }
    sha.update(json.dumps(about, sort_keys=True).encode())
    return sha.hexdigest()


def head_stage(classifier: Classifier) -> Classifier:
    """The same projection and head as a classifier of features (N, D, 1, 1): what is left to train."""
    whole = classifier.architecture
    pooled = require_backbone(whole.encoder.kind).dim
    spec = whole.encoder.model_copy(update={"kind": "linear"})
    architecture = replace(whole, image_shape=(pooled, 1, 1), encoder=spec)
    stage = Classifier(architecture, Encoder(nn.Flatten(), classifier.encoder.projection), classifier.head)
    return stage.to(classifier.mean.device)


def joined(classifier: Classifier, trained: Classifier) -> Classifier:
    """The backbone of `classifier` with the projection, head and temperature of a trained `head_stage`."""
    whole, stage = classifier.architecture, trained.architecture
    spec = whole.encoder.model_copy(update={"dim": stage.encoder.dim})
    architecture = replace(whole, encoder=spec, head=stage.head)
    result = Classifier(architecture, Encoder(classifier.encoder.trunk, trained.encoder.projection), trained.head)
    result.mean.copy_(classifier.mean)
    result.std.copy_(classifier.std)
    result.temperature, result.calibration = trained.temperature, trained.calibration
    return result.to(classifier.mean.device)


@torch.inference_mode()
def _extract(classifier: Classifier, dataset: Dataset, file: Path) -> None:
    """Write features.npy beside its place and rename it, so that it is whole if it is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    shape = (len(dataset.images), require_backbone(classifier.architecture.encoder.kind).dim)
    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    device, done = classifier.mean.device, 0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # full float32, as in the served graph
        for batch in track(dataset.images.split(IMAGES_AT_ONCE), f"features of {classifier.architecture.encoder.kind}"):
            images = as_served(batch, dataset.input).to(device)
            made = classifier.encoder.trunk(classifier.normalise(images))
            features[done : done + len(batch)] = made.cpu().numpy()
            done += len(batch)
    features.flush()
    partial.replace(file)
