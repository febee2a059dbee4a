"""Splits: disjoint, stratified, decided by their seeds, and no copy of an image on two sides."""

import numpy as np
import pytest
import torch
from torch import Tensor

from serving.bundle import InputSpec
from training.data import DataError, Dataset
from training.splits import copies_of, require_images, split, stratified_order


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def made_up(labels: Tensor, test_start: int | None = None, pixels: Tensor | None = None) -> Dataset:
    """Images of noise, of which those with the same number in `pixels` are copies."""
    images = torch.from_numpy(noise(len(labels), 1, 4, 4))
    spec = InputSpec(channels=1, height=4, width=4)
    return Dataset("made-up", images if pixels is None else images[pixels], labels, ("a", "b", "c"), spec, test_start)


LABELS = torch.arange(600) % 3


def test_splits_are_disjoint_and_complete() -> None:
    parts = split(made_up(LABELS), validation=0.25, test=0.2, seed=0)

    assert {name: len(part) for name, part in parts.items()} == {"train": 360, "validation": 120, "test": 120}
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(600))
    assert all(torch.equal(part, part.sort().values) for part in parts.values())


def test_splits_are_stratified() -> None:
    labels = torch.cat([torch.zeros(450), torch.ones(100), torch.full((50,), 2)]).long()

    parts = split(made_up(labels), validation=0.25, test=0.2, seed=0)

    assert labels[parts["test"]].bincount().tolist() == [90, 20, 10]
    assert labels[parts["validation"]].bincount().tolist() == [90, 20, 10]


def test_the_seed_decides_the_validation_split_and_the_split_seed_the_test_split() -> None:
    def cut(seed: int, split_seed: int) -> dict[str, list[int]]:
        parts = split(made_up(LABELS), validation=0.25, test=0.2, seed=seed, split_seed=split_seed)
        return {name: part.tolist() for name, part in parts.items()}

    first, other_seed, other_split = cut(1, 0), cut(2, 0), cut(1, 1)

    assert first == cut(1, 0)
    assert first["test"] == other_seed["test"] != other_split["test"]
    assert first["validation"] != other_seed["validation"]


def test_official_test_split_is_left_alone() -> None:
    dataset = made_up(LABELS, test_start=540)

    for seed in (0, 1):
        parts = split(dataset, validation=0.1, test=0.5, seed=seed)

        assert torch.equal(parts["test"], torch.arange(540, 600))
        assert len(parts["validation"]) == 54
        assert torch.equal(torch.cat([parts["train"], parts["validation"]]).sort().values, torch.arange(540))


def test_held_out_images_are_in_no_other_split_and_half_of_them_calibrate() -> None:
    dataset = made_up(LABELS, test_start=540)

    parts = split(dataset, validation=0.1, test=0.5, seed=0, held_out=0.2)

    assert {name: len(part) for name, part in parts.items()} == {
        "train": 388,
        "validation": 44,
        "held_out": 54,
        "calibration": 54,
        "test": 60,
    }
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(600))
    for name in ("held_out", "calibration"):
        assert LABELS[parts[name]].bincount().tolist() == [18, 18, 18]


def test_copies_of_held_out_images_are_held_out() -> None:
    pixels = torch.arange(600) // 2  # every image twice
    labels = (torch.arange(600) // 2) % 3

    parts = split(made_up(labels, pixels=pixels), validation=0.1, test=0.2, seed=0, held_out=0.2)

    places = [set(pixels[part].tolist()) for part in parts.values()]
    assert sum(map(len, places)) == len(set.union(*places)) == 300


def test_validation_split_may_be_empty() -> None:
    parts = split(made_up(LABELS, test_start=540), validation=0, test=0.5, seed=0)

    assert torch.equal(parts["train"], torch.arange(540))
    assert len(parts["validation"]) == 0


@pytest.mark.parametrize(
    ("counts", "validation", "test"),
    [
        ((5, 5, 5), 0, 0.2),
        ((1000, 5, 20), 0.1, 0.2),
        ((1000, 5, 3), 0.1, 0.2),
        ((5, 5, 5), 0.1, 0.2),
        ((3, 3, 3), 0.05, 0.05),
        ((2, 2, 100), 0, 0.02),
        ((2, 3, 4), 0, 0.95),
        ((50, 50, 2), 0, 0.1),
    ],
)
def test_every_class_is_in_every_split_if_it_has_images_enough(
    counts: tuple[int, ...], validation: float, test: float
) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    for seed in range(5):
        parts = split(made_up(labels), validation=validation, test=test, seed=seed, split_seed=seed)

        assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(len(labels)))
        for name, part in parts.items():
            found = labels[part].bincount(minlength=3)
            assert (found >= 1).all() or (name == "validation" and not validation)
            if name == "test":
                expected = torch.tensor(counts) * test
                assert ((found - expected).abs() <= 1.5).all() or test > 0.9  # where training keeps one of each


def test_class_that_lacks_in_a_split_gets_its_copies_together() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 6)
    pixels = torch.arange(106)
    pixels[100:106] = torch.tensor([100, 100, 100, 101, 101, 0])  # the last one lies under class a too

    for seed in range(5):
        parts = split(made_up(labels, pixels=pixels), validation=0, test=0.02, seed=seed, split_seed=seed)

        assert all(len(found) == 1 for found in sides(parts, pixels).values())
        assert parts["test"][labels[parts["test"]] == 2].tolist() == [103, 104]


def test_too_few_images_for_a_split_are_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"^every class of made-up must have images in the validation split, got none of c, of which there are 1 "
        r"different ones: add images, or leave the class out$",
    ):
        split(made_up(torch.tensor([0] * 10 + [1] * 10 + [2])), validation=0.1, test=0.2, seed=0)
    with pytest.raises(
        DataError, match=r" in the validation split, got none of b, of which there are 2 different ones"
    ):
        split(made_up(torch.tensor([0] * 10 + [1] * 2 + [2] * 10)), validation=0.1, test=0.2, seed=0)
    with pytest.raises(DataError, match=r" in the test split, got none of a, of which there are 1 "):
        split(made_up(torch.tensor([0, 1, 2])), validation=0, test=0.2, seed=0)


def test_classes_with_fewer_images_than_a_recipe_needs_are_named() -> None:
    dataset = made_up(torch.tensor([0] * 5 + [1] * 4 + [2] * 7), pixels=torch.tensor([*range(12), 11, 11, 11, 11]))

    require_images(dataset, 3)
    with pytest.raises(DataError) as caught:
        require_images(dataset, 5)

    assert str(caught.value) == (
        "every class of made-up must have at least 5 different images for this recipe, got b with 4, c with 3: "
        "add images, or leave the class out"
    )


# Copies


def test_copies_are_told_by_their_pixels() -> None:
    images = torch.from_numpy(noise(5, 3, 4, 4))[torch.tensor([3, 1, 3, 0, 1])]

    assert copies_of(images).tolist() == [0, 1, 0, 3, 1]
    images[2, 1, 2, 3] ^= 1
    assert copies_of(images).tolist() == [0, 1, 2, 3, 1]


def sides(parts: dict[str, Tensor], pixels: Tensor) -> dict[int, set[str]]:
    """In which splits the copies of each image are."""
    of = {int(position): name for name, part in parts.items() for position in part}
    return {number: {of[int(n)] for n in (pixels == number).nonzero()[:, 0]} for number in pixels.unique().tolist()}


def test_without_copies_images_are_cut_as_scikit_learn_does() -> None:
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(600), test_size=0.2, random_state=5, stratify=LABELS.numpy())
    rest.sort()
    _, validation = train_test_split(rest, test_size=0.25, random_state=4, stratify=LABELS.numpy()[rest])

    parts = split(made_up(LABELS), validation=0.25, test=0.2, seed=3, split_seed=5)

    assert parts["test"].tolist() == sorted(test)
    assert parts["validation"].tolist() == sorted(validation)


@pytest.mark.parametrize("seed", range(3))
def test_every_image_copied_once_is_on_one_side(seed: int) -> None:
    pixels = torch.arange(600) % 300

    parts = split(made_up(LABELS, pixels=pixels), validation=0.25, test=0.2, seed=seed, split_seed=seed)

    assert all(len(found) == 1 for found in sides(parts, pixels).values())
    assert {name: LABELS[part].bincount().tolist() for name, part in parts.items()} == {
        "train": [120] * 3, "validation": [40] * 3, "test": [40] * 3,
    }  # fmt: skip


def test_groups_of_all_sizes_are_on_one_side_in_nearly_their_share() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 60, 600) * 3) + LABELS
    pixels = torch.where(torch.arange(600) < 300, pixels, torch.arange(600))

    parts = split(made_up(LABELS, pixels=pixels), validation=0.25, test=0.2, seed=0)

    assert all(len(found) == 1 for found in sides(parts, pixels).values())
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(600))
    for name in ("validation", "test"):
        assert LABELS[parts[name]].bincount().tolist() == pytest.approx([40] * 3, abs=2)


def test_group_larger_than_a_split_stays_in_training() -> None:
    pixels = torch.where(LABELS == 1, torch.arange(600).clamp(min=400), torch.arange(600))  # 134 copies of one image

    parts = split(made_up(LABELS, pixels=pixels), validation=0.25, test=0.2, seed=0)

    assert sides(parts, pixels)[400] == {"train"}
    assert LABELS[parts["test"]].bincount()[[0, 2]].tolist() == [40, 40]
    assert 1 <= LABELS[parts["test"]].bincount()[1] < 40


def test_same_pixels_under_two_labels_are_on_one_side() -> None:
    pixels = torch.arange(600)
    pixels[1::60] = pixels[0::60]  # of class b, and a

    parts = split(made_up(LABELS, pixels=pixels), validation=0.25, test=0.2, seed=0)

    assert all(len(found) == 1 for found in sides(parts, pixels).values())


def test_data_set_with_an_official_test_split_is_cut_as_if_it_had_no_copies() -> None:
    plain, copied = (
        split(made_up(LABELS, 450, pixels), validation=0.2, test=0.5, seed=0)
        for pixels in (None, torch.arange(600) % 300)
    )

    assert copied["test"].tolist() == list(range(450, 600))
    assert all(torch.equal(plain[name], copied[name]) for name in plain)


def test_class_of_copies_alone_cannot_be_in_every_split() -> None:
    pixels = torch.where(LABELS == 2, 2, torch.arange(600))

    with pytest.raises(
        DataError,
        match=r"^every class of made-up must have images in the validation split, got none of c, of which there are 1 ",
    ):
        split(made_up(LABELS, pixels=pixels), validation=0.25, test=0.2, seed=0)


# A stratified order


def test_every_beginning_of_a_stratified_order_has_the_classes_in_their_shares() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 9 + [3])

    order = stratified_order(labels, seed=0)

    assert order.sort().values.tolist() == list(range(1000))
    for count in (4, 10, 100, 500):
        found = labels[order[:count]].bincount(minlength=4)
        assert (found >= 1).all()
        assert found.tolist() == pytest.approx([count * 0.9, count * 0.09, count * 0.009, count * 0.001], abs=3)


def test_stratified_order_is_decided_by_the_seed() -> None:
    first, again, other = (stratified_order(LABELS, seed).tolist() for seed in (0, 0, 1))

    assert first == again != other
