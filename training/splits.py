"""A data set cut into train, validation and test: every class in its share, copies of an image on one side.

splits = split(dataset, validation=0.1, test=0.2, seed=0)

Images may be held out besides, from weights and validation alike: in `held_out` they are what answers are compared with
(serving/held_out.py), and in `calibration` what the temperature and the scale of the typicality are fitted to.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import DataError, Dataset
from training.image_files import Images, digests_of

Splits = dict[str, Tensor]  # train, validation, test, and what is held out: positions, int64, sorted
Positions = NDArray[np.int64]


def split(
    dataset: Dataset,
    *,
    validation: float,
    test: float,
    seed: int,
    split_seed: int = 0,
    held_out: float = 0.0,
) -> Splits:
    """Cut a data set into train, validation and test, every class in the same shares.

    Images with the same pixels come into the same split. Only where the data set has a test split of its own, as others
    measure by, copies stay where they are.

    Args:
        dataset: what to cut.
        validation: share of the images outside the test split that are not held out.
        test: share of all images; unused if the data set has a test split of its own.
        seed: of all splits but the test split.
        split_seed: of the test split.
        held_out: share of the images outside the test split that are held out, half of them for calibration; without it
            there are no such splits.

    Raises:
        DataError: if a class has too few images to be in every split.
    """
    everything = torch.arange(len(dataset.labels))
    if dataset.test_start is not None:
        copies = everything.numpy()
        rest, of_test = everything[: dataset.test_start], everything[dataset.test_start :]
    else:
        copies = copies_of(dataset.images)
        rest, of_test = _cut(dataset, everything, copies, test, split_seed)
    rest, kept = _cut(dataset, rest, copies, held_out, seed + 2)
    train, chosen = _cut(dataset, rest, copies, validation, seed + 1)
    splits = {"train": train, "validation": chosen}
    if held_out:
        splits["held_out"], splits["calibration"] = _cut(dataset, kept, copies, 0.5, seed + 3)
    splits["test"] = of_test
    for name, positions in splits.items():
        if name != "validation" or validation:
            _require_every_class(dataset, copies, name, positions)
    return splits


def require_images(dataset: Dataset, fewest: int) -> None:
    """Refuse classes with fewer images than a recipe needs, copies counted once.

    Raises:
        DataError: naming every such class with its number.
    """
    copies = copies_of(dataset.images)
    counts = {label: len(set(copies[dataset.labels.numpy() == n])) for n, label in enumerate(dataset.classes)}
    if few := {label: count for label, count in counts.items() if count < fewest}:
        named = ", ".join(f"{label} with {count}" for label, count in few.items())
        raise DataError(
            f"every class of {dataset.name} must have at least {fewest} different images for this recipe, got {named}: "
            "add images, or leave the class out"
        )


def copies_of(images: Images) -> Positions:
    """For each image (N, channels, H, W), the position of the first one with the same pixels; (N,)."""
    first: dict[bytes, int] = {}
    digests = (digest.tobytes() for digest in digests_of(images))
    return np.array([first.setdefault(digest, position) for position, digest in enumerate(digests)], np.int64)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Shuffled positions whose every beginning has the classes in their shares, and all of them if it is long enough.

    Args:
        labels: int64 (N,).
        seed: of the shuffle.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    within = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # 0.. in each class
    share_before = within / counts.repeat_interleave(counts)
    return by_class[share_before.argsort(stable=True)]


def _require_every_class(dataset: Dataset, copies: Positions, name: str, positions: Tensor) -> None:
    missing = set(range(len(dataset.classes))) - set(dataset.labels[positions].tolist())
    if missing:
        short = min(missing)
        count = len(set(copies[dataset.labels.numpy() == short]))
        raise DataError(
            f"every class of {dataset.name} must have images in the {name} split, got none of "
            f"{dataset.classes[short]}, of which there are {count} different ones: add images, or leave the class out"
        )


def _cut(dataset: Dataset, positions: Tensor, copies: Positions, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified (rest, share) of positions, both with images of every class that has two different ones."""
    if share == 0:
        return positions, positions[:0]
    labels, copies = dataset.labels[positions].numpy(), copies[positions.numpy()]
    is_chosen = _kept_together(_stratified(labels, share, seed), labels, copies, seed)
    taken = torch.from_numpy(_on_both_sides(is_chosen, labels, copies, seed))
    return positions[~taken], positions[taken]


def _stratified(labels: Positions, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images are chosen, as scikit-learn does it; where it sees too few for their classes, each in its share."""
    from sklearn.model_selection import train_test_split

    is_chosen = np.zeros(len(labels), bool)
    try:
        _, chosen = train_test_split(np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels)
    except ValueError:
        order = np.random.default_rng(seed).permutation(len(labels))
        of_classes = (order[labels[order] == label] for label in np.unique(labels))
        chosen = np.concatenate([members[: round(share * len(members))] for members in of_classes])
    is_chosen[chosen] = True
    return is_chosen


def _kept_together(is_chosen: NDArray[np.bool_], labels: Positions, copies: Positions, seed: int) -> NDArray[np.bool_]:
    """The same choice but for images of which only some copies are chosen: of those all are, or none.

    In random order, they are chosen as long as that brings their class nearer to the number that it had.
    """
    _, group, sizes = np.unique(copies, return_inverse=True, return_counts=True)
    hits = np.bincount(group, is_chosen)
    torn = np.flatnonzero((hits > 0) & (hits < sizes))
    lacking = np.bincount(labels[is_chosen & np.isin(group, torn)], minlength=labels.max() + 1)
    of_groups = np.split(group.argsort(kind="stable"), sizes.cumsum()[:-1])
    for one in np.random.default_rng(seed).permutation(torn):
        members = of_groups[one]
        label = labels[members[0]]
        is_chosen[members] = taken = sizes[one] < 2 * lacking[label]
        lacking[label] -= sizes[one] * taken
    return is_chosen


def _on_both_sides(is_chosen: NDArray[np.bool_], labels: Positions, copies: Positions, seed: int) -> NDArray[np.bool_]:
    """The same choice, but for a class that is on one side only: one image of it changes sides, with its copies.

    It is one of those with the fewest copies, and none that lies under two classes. The other side keeps another one.
    """
    generator = np.random.default_rng(seed)
    for side in (True, False):
        for label in np.setdiff1d(labels, labels[is_chosen == side]):
            groups, sizes = np.unique(copies[labels == label], return_counts=True)
            pure = np.array([(labels[copies == group] == label).all() for group in groups])
            if len(groups) > 1 and pure.any():
                smallest = groups[pure & (sizes == sizes[pure].min())]
                is_chosen[copies == generator.choice(smallest)] = side
    return is_chosen
