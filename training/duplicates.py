"""Images that a data set holds more than once: counted, and the first of them named.

found = find_duplicates(images.dataset, images.splits)

Copies have the same pixels; `split` keeps them on one side where it can. Images that look alike, such as a photo and
its smaller JPEG, have thumbnails of 8 x 8 pixels that differ by at most 3 gray levels. They stay where they are, for
they may as well be two simple images, such as two handwritten ones.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import Dataset
from training.image_files import ImageFiles, Images
from training.splits import Positions, Splits, copies_of

NAMED = 3
SIDE = 8  # pixels of a thumbnail
GRAY_LEVELS = 3  # root mean square of the difference of two thumbnails that look alike
DIRECTIONS = 12  # principal ones, in which neighbours are looked for before they are compared
PIXELS_AT_ONCE = 1 << 24
HELD_OUT_AT_ONCE = 1024


def find_duplicates(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """What a data set holds more than once.

    Args:
        dataset: the images.
        splits: train, validation and test, as `split` cuts them.

    Returns:
        copies: how many images have the pixels of an earlier one;
        of_two_classes: how many images lie under another class too, and the first of them with all their places;
        in_two_splits: how many images of a split have the pixels of one of an earlier split;
        alike: how many look like one of an earlier split, and have not its pixels; first_alike: the first such pairs.
    """
    copies, labels = copies_of(dataset.images), dataset.labels.numpy()
    rank = np.zeros(len(copies), np.int64)
    for number, positions in enumerate(splits.values()):
        rank[positions.numpy()] = number
    doubtful = np.unique(copies[labels != labels[copies]])
    pairs = list(_alike(dataset.images, copies, rank))
    held_out = {name: number for number, name in enumerate(splits) if number}
    return {
        "copies": int((copies != np.arange(len(copies))).sum()),
        "of_two_classes": {
            "images": int(np.isin(copies, doubtful).sum()),
            "first": [[dataset.name_of(n) for n in np.flatnonzero(copies == one).tolist()] for one in doubtful[:NAMED]],
        },
        "in_two_splits": {
            name: int(np.isin(copies[rank == number], copies[rank < number]).sum()) for name, number in held_out.items()
        },
        "alike": {name: sum(int(rank[held]) == number for held, _ in pairs) for name, number in held_out.items()},
        "first_alike": [[dataset.name_of(position) for position in pair] for pair in pairs[:NAMED]],
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """What `find_duplicates` found, a sentence each; none if it found nothing."""
    lines, doubtful = [], found["of_two_classes"]
    if copies := found["copies"]:
        shared = _counts(found["in_two_splits"])
        where = f"{shared} images those of one in another split" if shared else "all copies of one are in one split"
        lines.append(f"{copies:,} images have the pixels of an earlier one; {where}")
    if doubtful["images"]:
        named = "; ".join(" = ".join(places) for places in doubtful["first"])
        lines.append(f"{doubtful['images']:,} images have the same pixels under two classes: {named}")
    if counts := _counts(found["alike"]):
        named = "; ".join(" ~ ".join(pair) for pair in found["first_alike"])
        lines.append(f"{counts} images look like one of another split: {named}")
    return lines


def thumbnails(images: Images) -> NDArray[np.float32]:
    """Images uint8 (N, channels, H, W) as 8 x 8 means in gray levels, (N, channels * 64)."""
    if isinstance(images, ImageFiles):
        return images.thumbnails.astype(np.float32)
    at_once = max(1, PIXELS_AT_ONCE // math.prod(images.shape[1:]))
    small = [torch.nn.functional.adaptive_avg_pool2d(part.float(), SIDE) for part in images.split(at_once)]
    return torch.cat(small).flatten(1).numpy()


def _counts(of_splits: dict[str, int]) -> str:
    return " and ".join(f"{count:,} {name}" for name, count in of_splits.items() if count)


def _alike(images: Images, copies: Positions, rank: Positions) -> Iterator[tuple[int, int]]:
    """Each image outside training that looks like one of a split of lower rank, and the likest of those.

    Of copies in a split only the first is looked at. No two images are farther apart in the principal directions than
    they are, so all that look alike are neighbours there.
    """
    from sklearn.neighbors import KDTree

    once = np.unique(copies * (rank.max() + 1) + rank, return_index=True)[1]
    small = thumbnails(images)[once]
    placed = small @ _principal_directions(small)
    tree, radius = KDTree(placed), 1.001 * GRAY_LEVELS * small.shape[1] ** 0.5
    held_out = np.flatnonzero(rank[once])
    for start in range(0, len(held_out), HELD_OUT_AT_ONCE):
        part = held_out[start : start + HELD_OUT_AT_ONCE]
        for held, near in zip(part, tree.query_radius(placed[part], radius), strict=True):
            others = near[(rank[once[near]] < rank[once[held]]) & (copies[once[near]] != copies[once[held]])]
            distances = np.square(small[others] - small[held]).mean(1)
            if distances.min(initial=np.inf) <= GRAY_LEVELS**2:
                yield int(once[held]), int(once[others[distances.argmin()]])


def _principal_directions(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The directions (D, 12) in which points (N, D) vary most."""
    centred = points - points.mean(0)
    directions: NDArray[np.float32] = np.linalg.eigh(centred.T @ centred)[1][:, -DIRECTIONS:]
    return directions
