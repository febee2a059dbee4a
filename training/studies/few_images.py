"""What a classifier is worth that has seen few images a class: which images are drawn, and how each method is measured.

    positions = draw(labels, 20, seed=0)  # 20 images of every class

Every method gets the same images. Logistic regression and nearest neighbours are scikit-learn's, on the backbone's
pooled features as they are; what they leave open is chosen by cross-validation on the drawn images.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.classifier import Architecture, Classifier, build_classifier
from training.evaluate import eager, measure, run_graph
from training.files import replace_text
from training.fit import fit, validation_metrics
from training.images import Labelled
from training.progress import say
from training.recipe import Recipe
from training.train import refitted

FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # C of the logistic regression
NEIGHBOURS = (1, 3, 5)
STEPS = 2000  # of the logistic regression, at most
SHUFFLE = 1_000_003  # apart from other uses of a small seed

Figures = dict[str, float]
Measure = Callable[[Labelled, Labelled], Figures]  # of the drawn images and the test images


def draw(labels: Tensor, count: int, seed: int) -> Tensor:
    """Positions, int64 and sorted, of `count` images of every class; of a larger count with the same seed, some.

    Args:
        labels: int64 (N,).
        count: at most the images of the smallest class; a class with fewer gives all.
        seed: of the choice.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SHUFFLE * (seed + 1)))
    chosen = [shuffled[labels[shuffled] == label][:count] for label in labels.unique()]
    return torch.cat(chosen).sort().values


def draws_of(labels: Tensor, sizes: Sequence[int], draws: int) -> dict[int, list[Tensor]]:
    """So many draws of each size; one where it takes every image. Sizes that a class falls short of are skipped.

    Args:
        labels: int64 (N,).
        sizes: images a class.
        draws: of each size, with seeds from 0.
    """
    counts = labels.bincount()
    fewest, most = int(counts.min()), int(counts.max())
    if skipped := [size for size in sizes if size > fewest]:
        say(f"skipped: {', '.join(map(str, skipped))} images a class, for the smallest class has {fewest}")
    kept = [size for size in sizes if size <= fewest]
    return {size: [draw(labels, size, seed) for seed in range(1 if size == most else draws)] for size in kept}


def measure_head(stage: Classifier, recipe: Recipe, train: Labelled, test: Labelled) -> Figures:
    """Accuracy, NLL and ECE of the head that the recipe fits on features, and whether it is MDA (1) or LDA (0).

    Args:
        stage: a classifier of features, as training/features.py makes it.
        recipe: with a [refit].
        train: features (N, P, 1, 1).
        test: features (M, P, 1, 1), on the CPU.
    """
    fitted = refitted(stage, recipe, train).classifier
    outputs = run_graph(eager(fitted, stage.mean.device), test.images, batch_size=1024)
    found = measure(outputs, test.labels)
    return {**{key: found[key] for key in ("accuracy", "nll", "ece")}, "mda": float(fitted.head.kind == "mda")}


def measure_logistic(train: Labelled, test: Labelled, *, standardised: bool) -> Figures:
    """Accuracy of multinomial logistic regression on features (N, P); its C by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaling = [StandardScaler()] if standardised else []
    model = make_pipeline(*scaling, LogisticRegression(max_iter=STEPS))
    return _accuracy_of(model, {"logisticregression__C": STRENGTHS}, train, test)


def measure_neighbours(train: Labelled, test: Labelled) -> Figures:
    """Accuracy of the nearest neighbours by Euclidean distance of features (N, P); how many by cross-validation."""
    from sklearn.neighbors import KNeighborsClassifier

    return _accuracy_of(KNeighborsClassifier(), {"n_neighbors": NEIGHBOURS}, train, test)


def measure_from_scratch(recipe: Recipe, train: Labelled, test: Labelled, classes: int) -> Figures:
    """Accuracy of a recipe whose encoder learns from the drawn images, all of them and nothing else.

    Args:
        recipe: with a [refit].
        train: uint8 (N, channels, H, W) in the recipe's size, on the device to train on.
        test: in the same size and on the same device.
        classes: C.
    """
    _, channels, height, width = train.images.shape
    torch.manual_seed(recipe.seed)
    architecture = Architecture((channels, height, width), classes, recipe.encoder, recipe.head)
    classifier = build_classifier(architecture).to(train.images.device)
    classifier.learn_normalisation(train.images)
    for _ in fit(classifier, recipe, train, Labelled(train.images[:0], train.labels[:0])):
        pass
    fitted = refitted(classifier, recipe, train).classifier
    return {"accuracy": validation_metrics(fitted, test)["validation_accuracy"]}


def kept(folder: Path, name: str, measure_it: Measure) -> Measure:
    """The same measurement, which is made once for the same images: its figures stay in a file of `folder`.

    Args:
        folder: of the files; it may be emptied at any time.
        name: of the measurement and of all that decides it besides the images.
        measure_it: what is measured.
    """

    def measure_once(train: Labelled, test: Labelled) -> Figures:
        sha = hashlib.sha256(name.encode())
        for part in (train.images, train.labels, test.images, test.labels):
            sha.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            sha.update(part.cpu().contiguous().numpy().data)
        file = folder / f"{sha.hexdigest()}.json"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(file, json.dumps(measure_it(train, test)) + "\n")
        figures: Figures = json.loads(file.read_text(encoding="utf-8"))
        return figures

    return measure_once


def _accuracy_of(model: Any, choices: dict[str, Sequence[float]], train: Labelled, test: Labelled) -> Figures:
    """Fit a classifier of scikit-learn's, what is open chosen by cross-validation in its own random folds."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    features, labels = train.images.flatten(1).numpy(), train.labels.numpy()
    folds = StratifiedKFold(min(FOLDS, int(np.bincount(labels).min())), shuffle=True, random_state=0)
    found = GridSearchCV(model, choices, cv=folds, n_jobs=-1).fit(features, labels)
    return {"accuracy": float(found.score(test.images.flatten(1).numpy(), test.labels.numpy()))}
