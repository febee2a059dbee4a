"""Fine-tuning: which blocks learn when and how fast, averaged weights, and a training that goes on bit for bit."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from training_samples import same_weights, saved, small_recipe, timeless

from serving.bundle import InputSpec
from training import images as images_module
from training.backbones import build_backbone, normalisation_of
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Dataset, Sources, as_served
from training.finetune import blocks_of, thaw
from training.fit import build_optimizer, fit
from training.images import Labelled, load_images
from training.recipe import Recipe
from training.run import Run
from training.train import train
from training.weights import load_backbone

NOTHING = Labelled(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.long))
FIT = {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.01, "schedule": "one-cycle"}

CPU = torch.device("cpu")
TINY = "timm:test_efficientnet"
PARTS = (("conv_stem", "bn1"), *((f"blocks.{number}",) for number in range(4)), ("blocks.4", "conv_head", "bn2"))

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("one_thread")]


def recipe_of(fit: dict[str, Any] | None = None, kind: str = TINY, **sections: dict[str, Any]) -> Recipe:
    """A fine-tuning of few steps."""
    base: dict[str, dict[str, Any]] = {
        "data": {"name": "cifar10", "validation": 0.25},
        "encoder": {"kind": kind, "dim": None, "width": 64, "frozen": False},
        "head": {"kind": "softmax"},
        "fit": {**FIT, **(fit or {})},
    }
    return small_recipe(**base, **sections)


def images(count: int = 24, side: int = 32) -> Labelled:
    """Noise with a bright half, which is the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 120, (count, 3, side, side), dtype=np.uint8)
    pixels[labels == 1, :, : side // 2] += 100
    return Labelled(torch.from_numpy(pixels), torch.from_numpy(labels))


def fresh(recipe: Recipe, side: int = 32, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    classifier = build_classifier(Architecture((3, side, side), 2, recipe.encoder, recipe.head))
    classifier.learn_normalisation(images(4).images)
    return classifier


def fitted(recipe: Recipe, side: int = 32) -> tuple[Classifier, list[dict[str, Any]]]:
    classifier = fresh(recipe, side)
    return classifier, [epoch.metrics for epoch in fit(classifier, recipe, images(), NOTHING)]


# Blocks and rates


def test_blocks_of_timm_are_the_stem_and_every_block_in_a_row() -> None:
    trunk = load_backbone("efficientnet-lite0")

    blocks = blocks_of(trunk)

    names = {id(parameter): name for name, parameter in trunk.named_parameters()}
    first = [names[id(block[0])] for block in blocks]
    expected = [f"blocks.{s}.{n}." for s, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for n in range(count)]
    assert [name[: len(start)] for name, start in zip(first, ["conv_stem.", *expected], strict=True)] == [
        "conv_stem.",
        *expected,
    ]
    assert sum(map(len, blocks)) == len(names)


def test_blocks_of_another_network_are_its_modules_whatever_follows_it() -> None:
    trunk: Any = build_backbone("resnet18")
    wrapped = torch.nn.Sequential(trunk, torch.nn.ReLU())

    blocks = blocks_of(wrapped)

    parts = ([trunk.conv1, trunk.bn1], [trunk.layer1], [trunk.layer2], [trunk.layer3], [trunk.layer4])
    assert [list(map(id, block)) for block in blocks] == [
        [id(parameter) for module in part for parameter in module.parameters()] for part in parts
    ]


def test_rates_fall_by_the_decay_per_block_towards_the_images() -> None:
    recipe = recipe_of({"lr": 0.5, "layer_decay": 0.7, "schedule": "constant"})
    classifier = fresh(recipe)
    trunk: Any = classifier.encoder.trunk
    trunk.requires_grad_(True)

    optimizer = build_optimizer(classifier, recipe.fit, trunk)

    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(classifier.head.linear.weight)] == 0.5
    for steps, part in enumerate(reversed(PARTS), start=1):
        found = [rates[id(p)] for name in part for p in trunk.get_submodule(name).parameters()]
        assert found == pytest.approx([0.5 * 0.7**steps] * len(found))
    assert len(rates) == len(list(classifier.parameters()))


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_schedules_keep_the_ratios_of_the_rates(schedule: str) -> None:
    recipe = recipe_of({"layer_decay": 0.5, "schedule": schedule})
    epochs = fit(fresh(recipe), recipe, images(), NOTHING)

    rates = [group["lr"] for group in next(epochs).state["optimizer"]["param_groups"]]

    assert rates == pytest.approx([rates[0] * 0.5**steps for steps in range(7)])


# Which blocks learn


def changed_blocks(before: Classifier, after: Classifier) -> list[bool]:
    """For each block of the trunk and for the head, whether any parameter or statistic differs."""
    trunks = before.encoder.trunk, after.encoder.trunk
    found = [not all(same_weights(*(trunk.get_submodule(name) for trunk in trunks)) for name in part) for part in PARTS]
    return [*found, not same_weights(before.head, after.head)]


def test_first_phase_changes_the_last_blocks_alone() -> None:
    recipe = recipe_of({"epochs": 3, "freeze_epochs": 2, "last_blocks": 1})
    classifier = fresh(recipe)
    before = fresh(recipe)
    epochs = fit(classifier, recipe, images(), NOTHING)

    after_each = [(next(epochs), changed_blocks(before, classifier))[1] for _ in range(3)]

    assert after_each[:2] == [[False] * 5 + [True, True]] * 2
    assert after_each[2] == [True] * 7


def test_no_last_blocks_leave_the_head_alone_to_learn() -> None:
    recipe = recipe_of({"epochs": 1, "freeze_epochs": 1, "last_blocks": 0})

    classifier, _ = fitted(recipe)

    assert changed_blocks(fresh(recipe), classifier) == [False] * 6 + [True]


def test_frozen_blocks_never_change() -> None:
    recipe = recipe_of({"frozen_blocks": 3, "freeze_epochs": 1})

    classifier, _ = fitted(recipe)

    assert changed_blocks(fresh(recipe), classifier) == [False] * 3 + [True] * 4


def test_more_frozen_blocks_than_there_are_are_refused() -> None:
    recipe = recipe_of({"frozen_blocks": 6})

    with pytest.raises(ValueError, match=r"^fit.frozen_blocks must be less than the encoder's 6, got 6$"):
        fitted(recipe)


def test_batch_norm_in_evaluation_mode_keeps_its_statistics_and_learns_its_scales() -> None:
    recipe = recipe_of({"batch_norm": "eval"})

    classifier, _ = fitted(recipe)

    norm, before = (c.encoder.trunk.bn2 for c in (classifier, fresh(recipe)))
    assert torch.equal(norm.running_mean, before.running_mean)
    assert torch.equal(norm.running_var, before.running_var)
    assert not torch.equal(norm.weight, before.weight)


def test_depthwise_kernels_stay_where_the_recipe_says_so() -> None:
    recipe = recipe_of({"train_depthwise": False, "epochs": 1})

    classifier, _ = fitted(recipe)

    before, after = (dict(c.encoder.trunk.named_parameters()) for c in (fresh(recipe), classifier))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.endswith("conv_dw.weight")}


def test_frozen_backbone_has_nothing_that_learns() -> None:
    recipe = recipe_of()
    trunk = fresh(recipe).encoder.trunk

    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    thaw(trunk, recipe.fit, epoch=1)
    assert all(parameter.requires_grad for parameter in trunk.parameters())


# Averaged weights


def test_kept_weights_are_the_exponential_moving_average_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    decay, seen = 0.8, []
    recipe = recipe_of({"ema_decay": decay})
    classifier = fresh(recipe)
    step = torch.optim.lr_scheduler.OneCycleLR.step

    def recorded(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        seen.append({name: value.double() for name, value in classifier.state_dict().items()})

    monkeypatch.setattr(torch.optim.lr_scheduler.OneCycleLR, "step", recorded)
    list(fit(classifier, recipe, images(), NOTHING))

    steps = seen[1:]  # the first call is the schedule's own, at its making
    assert len(steps) == 6
    for name, value in classifier.state_dict().items():
        if value.is_floating_point():
            expected = steps[0][name]
            for weights in steps[1:]:
                expected = decay * expected + (1 - decay) * weights[name]
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert not math.isclose(steps[-1]["head.linear.bias"][0], classifier.head.linear.bias[0].item(), rel_tol=1e-4)


def test_averaged_weights_are_what_is_measured() -> None:
    recipe = recipe_of({"ema_decay": 0.9})
    classifier = fresh(recipe)

    *_, last = fit(classifier, recipe, images(), images(10))

    log_joints = classifier.eval()(images(10).images).log_joints
    nll = torch.nn.functional.cross_entropy(log_joints, images(10).labels).item()
    assert last.metrics["validation_nll"] == pytest.approx(nll, rel=1e-5)


# The whole training


def test_fine_tuning_goes_on_from_a_saved_state_to_the_same_weights() -> None:
    keys = {"crop_scale": 0.5, "flip": True, "freeze_epochs": 1, "layer_decay": 0.8, "ema_decay": 0.9, "epochs": 3}
    recipe = recipe_of(keys)
    whole, metrics = fitted(recipe)

    for done in (1, 2, 3):
        begun = fit(fresh(recipe), recipe, images(), NOTHING)
        state = saved([next(begun).state for _ in range(done)][-1])
        resumed = fresh(recipe, seed=99)
        rest = [epoch.metrics for epoch in fit(resumed, recipe, images(), NOTHING, state)]

        assert same_weights(resumed, whole)
        assert [timeless(line) for line in rest] == [timeless(line) for line in metrics[done:]]


@pytest.mark.parametrize("crop_scale", [None, 0.5])
def test_images_of_another_size_are_brought_to_the_networks(
    crop_scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, normalise = set(), Classifier.normalise

    def spy(self: Classifier, batch: torch.Tensor) -> torch.Tensor:
        shapes.add((tuple(batch.shape), batch.dtype))
        return normalise(self, batch)

    monkeypatch.setattr(Classifier, "normalise", spy)
    fitted(recipe_of({"epochs": 1, "crop_scale": crop_scale, "flip": True}), side=48)

    assert shapes == {((8, 3, 48, 48), torch.float32)}


def test_pretrained_network_learns_in_a_few_steps() -> None:
    recipe = recipe_of({"epochs": 4, "lr": 0.002, "precision": "float32"}, kind="efficientnet-lite0")
    classifier = fresh(recipe)
    classifier.encoder.trunk = load_backbone("efficientnet-lite0")

    losses = [epoch.metrics["loss"] for epoch in fit(classifier, recipe, images(16), NOTHING)]

    assert losses[-1] < 0.7 * losses[0]


# From the images to a classifier


TUNED = recipe_of(
    {"crop_scale": 0.5, "flip": True, "ema_decay": 0.5, "freeze_epochs": 1, "lr": 0.001},
    refit={"head": "lda", "dim": 4, "ridge": 1.0},
    calibration={},
)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Weights of timm's smallest network, and few images in the place of CIFAR-10."""
    data = images(48)
    spec = InputSpec(channels=3, height=32, width=32)
    dataset = Dataset("cifar10", data.images, data.labels, ("dark", "bright"), spec, test_start=40)
    monkeypatch.setattr(images_module, "load_dataset", lambda *_: dataset)
    torch.manual_seed(0)
    torch.save(build_backbone(TINY).state_dict(), tmp_path / "tiny.pth")
    return Sources(weights=tmp_path / "tiny.pth", cache=tmp_path / "cache")


def finished(recipe: Recipe, sources: Sources, runs: Path, run_id: str = "one") -> Run:
    run = Run.create("tuned", recipe, run_id, runs)
    train(run, sources, CPU)
    return run


def test_fine_tuned_backbone_is_refitted_and_calibrated_on_its_own_features(tiny: Sources, tmp_path: Path) -> None:
    run = finished(TUNED, tiny, tmp_path)

    classifier = run.load_classifier()
    trunk, before = classifier.encoder.trunk, load_backbone(TINY, tiny.weights)
    assert [line["epoch"] for line in run.epochs()] == [1, 2]
    assert not same_weights(trunk, before)
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert torch.equal(classifier.mean, normalisation_of(TINY)[0])
    assert classifier.calibration["why"]
    loaded = load_images(run.recipe, tiny)
    served = as_served(loaded.part("train", CPU).images, loaded.dataset.input)
    with torch.no_grad():
        pooled = trunk(classifier.normalise(served)).double().numpy()
        found = classifier.encoder(classifier.normalise(served)).numpy()
    theirs = PCA(4).fit_transform(pooled)
    np.testing.assert_allclose(np.abs(found), np.abs(theirs), rtol=1e-3, atol=1e-4)


def test_interrupted_fine_tuning_goes_on_to_the_same_classifier(tiny: Sources, tmp_path: Path) -> None:
    whole = finished(TUNED, tiny, tmp_path, "whole")
    run = Run.create("tuned", TUNED, "cut", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_epoch", interrupted_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(run, tiny, CPU)

    train(Run.open(run.path), tiny, CPU)

    assert Run.open(run.path).description()["resumed"][0]["after_epoch"] == 1
    assert same_weights(run.load_classifier(), whole.load_classifier())


def interrupted_in_the_second(run: Run, metrics: dict[str, Any]) -> None:
    if metrics["epoch"] == 2:
        raise KeyboardInterrupt
