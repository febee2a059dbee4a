"""The speed of training: this project's loop against the one that notebooks have, on the same model and device.

    python -m training benchmark --rounds 5

Ours is `training/fit.py` as every training runs it: uint8 images on the device, augmented a batch at a time, and a look
at the loss every 16 steps. The other is the notebooks' own: torchvision transforms on one PIL image at a time, a
DataLoader with two workers, float32, `loss.item()` at every step; for the digits, as in their notebook, tensors and no
workers. Both train the recipe's model with its optimiser, loss and augmentation. The loops take turns, so that what
else the machine does meets both, and the ratio is the median over the pairs. Each loop has run once before the clock
starts; the notebook's clock starts after its first batch, which leaves out the start of its workers.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from training.backbones import backbone_of
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Sources
from training.datasets import DATASETS
from training.fit import build_optimizer, fit
from training.images import Labelled, load_images
from training.losses import build_loss
from training.progress import track
from training.recipe import Recipe, load_recipe

SMALL = ("digits-softmax", "cifar10-softmax", "cifar10-mlp", "cifar10-cnn")
WORKERS = 2


@dataclass(frozen=True)
class Speed:
    """One recipe's speed.

    Attributes:
        recipe: its name.
        ours: images per second of each round.
        notebook: images per second of the notebook's loop in the same rounds.
        images: how many a round trains on.
    """

    recipe: str
    ours: tuple[float, ...]
    notebook: tuple[float, ...]
    images: int

    @property
    def ratios(self) -> list[float]:
        """Ours over the notebook's, a pair a round."""
        return [ours / notebook for ours, notebook in zip(self.ours, self.notebook, strict=True)]

    def figures(self) -> dict[str, Any]:
        """Plain values: medians over the rounds and the spread of the ratio."""
        return {
            "images_per_s": round(statistics.median(self.ours), 1),
            "notebook_images_per_s": round(statistics.median(self.notebook), 1),
            "ratio": round(statistics.median(self.ratios), 2),
            "ratio_range": [round(min(self.ratios), 2), round(max(self.ratios), 2)],
            "rounds": len(self.ours),
            "images": self.images,
        }


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: from an array to PIL and through transforms, one at a time.

    Args:
        data: uint8 (N, channels, H, W) and labels.
        transform: PIL image to tensor.
    """

    def __init__(self, data: Labelled, transform: Callable[[Any], Tensor]):
        self.pixels = data.images.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
        self.targets = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A normalised image (channels, H, W) and its label."""
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def measure_speed(
    name: str, recipe: Recipe, data: Labelled, classes: int, *, rounds: int, device: torch.device
) -> Speed:
    """Train with both loops in turn.

    Args:
        name: the recipe's.
        recipe: what is trained; an epoch a round.
        data: the images, on the CPU.
        classes: C.
        rounds: pairs that are measured, after one that is not.
        device: of the model.
    """
    shape = tuple(data.images.shape[1:])
    classifier = _classifier(recipe, shape, classes, data.images).to(device)
    other = deepcopy(classifier)
    here = Labelled(data.images.to(device), data.labels.to(device))
    loader = _loader(recipe, data, classifier, device)
    loops = (lambda: our_epoch(classifier, recipe, here), lambda: notebook_epoch(other, recipe, loader, device))
    pairs = []
    for number in track(range(rounds + 1), f"benchmark: {name}"):
        order = (0, 1) if number % 2 else (1, 0)
        speeds = {which: loops[which]() for which in order}
        pairs.append((speeds[0], speeds[1]))
    ours, notebook = zip(*pairs[1:], strict=True)
    return Speed(name, ours, notebook, len(data))


def our_epoch(classifier: Classifier, recipe: Recipe, data: Labelled) -> float:
    """Images per second of one epoch by `training.fit`."""
    nothing = Labelled(data.images[:0], data.labels[:0])
    return float(next(fit(classifier, recipe, data, nothing)).metrics["images_per_s"])


def notebook_epoch(classifier: Classifier, recipe: Recipe, loader: DataLoader[Any], device: torch.device) -> float:
    """Images per second of one epoch as the notebooks train, after the first batch."""
    optimizer = build_optimizer(classifier, recipe.fit)
    criterion = build_loss(recipe.loss.kind, recipe.loss.weight)
    classifier.train()
    total, seen, started = 0.0, 0, 0.0
    for step, (batch, targets) in enumerate(loader):
        inputs, labels = batch.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = criterion(classifier.head(classifier.encoder(inputs)), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step == 0:
            started = time.perf_counter()
        else:
            seen += len(labels)
    return seen / (time.perf_counter() - started)


def run_benchmark(
    names: Sequence[str], sources: Sources | None, *, images: int, rounds: int, device: torch.device
) -> list[Speed]:
    """Measure recipes one after the other.

    Args:
        names: recipes.
        sources: of real images; None for noise of the same shape.
        images: how many a round trains on, at most.
        rounds: pairs of measurements.
        device: of the models.

    Raises:
        ValueError: if a recipe trains on features or there are too few images for two batches.
    """
    return [_benchmark_one(name, sources, images, rounds, device) for name in names]


def table_of_speeds(speeds: Sequence[Speed]) -> Table:
    """Images per second, and how many times as fast."""
    table = Table("recipe", "images/s", "notebook's loop", "times as fast", "range", box=None)
    for speed in speeds:
        figures = speed.figures()
        low, high = figures["ratio_range"]
        table.add_row(
            speed.recipe, f"{figures['images_per_s']:,.0f}", f"{figures['notebook_images_per_s']:,.0f}",
            f"{figures['ratio']:.2f}", f"{low:.2f} to {high:.2f}",
        )  # fmt: skip
    return table


def recipe_timed(name: str) -> Recipe:
    """A recipe as both loops train it: an epoch, of images of one size.

    Raises:
        RecipeError: if there is none.
    """
    return load_recipe(name, ["fit.epochs=1", "fit.scales=[1.0]"])[1]


def noise(recipe: Recipe, count: int) -> tuple[Labelled, int]:
    """Random images in the shape of the recipe's data set, random labels, and the number of classes."""
    data, entry = recipe.data, DATASETS[recipe.data.name]
    shape, classes = entry.shape or (data.channels, data.size, data.size), entry.classes or 10
    generator = torch.Generator().manual_seed(recipe.seed)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Labelled(pixels, torch.randint(classes, (count,), generator=generator)), classes


def _benchmark_one(name: str, sources: Sources | None, images: int, rounds: int, device: torch.device) -> Speed:
    recipe = recipe_timed(name)
    if backbone_of(recipe.encoder.kind) is not None:
        raise ValueError(f"encoder.kind must be one that learns from pixels for benchmark, got {recipe.encoder.kind}")
    if images < 2 * recipe.fit.batch_size:
        raise ValueError(f"images must be at least two batches of {recipe.fit.batch_size}, got {images}")
    if sources is None:
        data, classes = noise(recipe, images)
    else:
        loaded = load_images(recipe, sources)
        whole, classes = loaded.part("train", torch.device("cpu")), len(loaded.dataset.classes)
        data = Labelled(whole.images[:images], whole.labels[:images])
    return measure_speed(Path(name).stem, recipe, data, classes, rounds=rounds, device=device)


def _classifier(recipe: Recipe, shape: tuple[int, ...], classes: int, images: Tensor) -> Classifier:
    channels, height, width = shape
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(Architecture((channels, height, width), classes, recipe.encoder, recipe.head))
    classifier.learn_normalisation(images)
    return classifier


def _loader(recipe: Recipe, data: Labelled, classifier: Classifier, device: torch.device) -> DataLoader[Any]:
    """The notebook's DataLoader, with the recipe's augmentation and the classifier's normalisation."""
    from torchvision import transforms

    size, spec = recipe.fit.batch_size, recipe.fit
    mean, std = (value.flatten().cpu() / 255 for value in (classifier.mean, classifier.std))
    if recipe.data.name == "digits":
        pixels = (data.images / 255 - mean[:, None, None]) / std[:, None, None]
        return DataLoader(TensorDataset(pixels, data.labels), size, shuffle=True)
    steps: list[Any] = []
    if spec.crop_padding:
        steps.append(transforms.RandomCrop(data.images.shape[2:], padding=spec.crop_padding))
    if spec.flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(mean.tolist(), std.tolist())]
    if spec.cutout:
        share = spec.cutout**2 / data.images[0, 0].numel()
        steps.append(transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1)))
    items = PilImages(data, transforms.Compose(steps))
    return DataLoader(items, size, shuffle=True, num_workers=WORKERS, pin_memory=device.type == "cuda")
