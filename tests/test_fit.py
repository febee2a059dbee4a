"""The training loop: it learns, it repeats itself, it goes on after an interruption, it stops at what is no number."""

import itertools
import math
from typing import Any

import pytest
import torch
from training_samples import digits_from, same_weights, saved, small_recipe, timeless

from training import fit as fit_module
from training.classifier import Architecture, Classifier, build_classifier
from training.fit import DivergedError, build_optimizer, build_schedule, fit, validation_metrics
from training.fit_spec import FitSpec
from training.images import Labelled
from training.recipe import Recipe

NOTHING = digits_from(0, 0)
MLP = {"kind": "mlp", "dim": 3, "hidden": [16]}


pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("one_thread")]


def fresh(recipe: Recipe, images: torch.Tensor, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    classifier = build_classifier(Architecture((1, 8, 8), 10, recipe.encoder, recipe.head))
    classifier.learn_normalisation(images)
    return classifier


def fitted(recipe: Recipe, train: Labelled, validation: Labelled = NOTHING) -> tuple[Classifier, list[dict[str, Any]]]:
    """A trained classifier and the metrics of its epochs."""
    classifier = fresh(recipe, train.images)
    return classifier, [epoch.metrics for epoch in fit(classifier, recipe, train, validation)]


def test_loss_goes_down_and_unseen_images_are_recognised() -> None:
    recipe = small_recipe(encoder={"width": 8, "dim": 9}, fit={"epochs": 6, "lr": 0.02, "schedule": "one-cycle"})

    classifier, epochs = fitted(recipe, digits_from(0, 1500), digits_from(1500, 500))

    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["loss"] < 0.2 * epochs[0]["loss"]
    assert epochs[-1]["train_accuracy"] > 0.95
    assert epochs[-1]["validation_accuracy"] > 0.93
    assert (
        epochs[-1]["validation_accuracy"]
        == validation_metrics(classifier, digits_from(1500, 500))["validation_accuracy"]
    )


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        ({"kind": "lda", "covariance": "full"}, {"kind": "dnll", "weight": 0.1}),
        ({"kind": "lda", "simplex": True}, {"kind": "logistic"}),
        ({"kind": "mda", "components": 2}, {"kind": "em-dnll", "weight": 0.1}),
        ({"kind": "mda", "components": 2, "covariance": "diagonal"}, {"kind": "lda"}),
        ({"kind": "svm"}, {"kind": "hinge"}),
        ({"kind": "softmax"}, {"kind": "cross-entropy"}),
    ],
)
def test_every_kind_of_head_learns(head: dict, loss: dict) -> None:
    encoder = {"kind": "mlp", "dim": 9, "hidden": [32]}
    recipe = small_recipe(encoder=encoder, head=head, loss=loss, fit={"epochs": 8, "lr": 0.005})

    _, epochs = fitted(recipe, digits_from(0, 1000), digits_from(1000, 400))

    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["validation_accuracy"] > 0.85


def test_same_seed_gives_the_same_weights() -> None:
    augmented = {"crop_padding": 1, "flip": True}
    train = digits_from(0, 200)

    first, again = (fitted(small_recipe(fit=augmented), train)[0] for _ in range(2))
    other, _ = fitted(small_recipe(seed=1, fit=augmented), train)
    plain, _ = fitted(small_recipe(), train)

    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert not same_weights(first, plain)


def test_every_epoch_sees_every_image_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, orders = fit_module.batches, []

    def recorded(*arguments: object) -> list[torch.Tensor]:
        parts = list(batches(*arguments))
        orders.append(torch.cat(parts).tolist())
        return parts

    monkeypatch.setattr(fit_module, "batches", recorded)
    fitted(small_recipe(encoder=MLP, fit={"epochs": 3}), digits_from(0, 100))

    assert [sorted(order) for order in orders] == [list(range(100))] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize(
    "sections",
    [
        {"fit": {"epochs": 4, "schedule": "one-cycle", "crop_padding": 1, "flip": True}},
        {"encoder": {**MLP, "dropout": 0.5}, "fit": {"epochs": 4, "schedule": "cosine", "optimizer": "adam"}},
        {"fit": {"epochs": 4, "optimizer": "sgd", "precision": "bfloat16"}},
    ],
)
def test_training_goes_on_from_a_saved_state_to_the_same_weights(sections: dict) -> None:
    recipe, train = small_recipe(**sections), digits_from(0, 200)
    whole, metrics = fitted(recipe, train)

    begun = fit(fresh(recipe, train.images), recipe, train, NOTHING)
    state = saved([next(begun).state for _ in range(2)][1])
    resumed = fresh(recipe, train.images, seed=99)
    rest = [epoch.metrics for epoch in fit(resumed, recipe, train, NOTHING, state)]

    assert same_weights(resumed, whole)
    assert [timeless(line) for line in rest] == [timeless(line) for line in metrics[2:]]


def test_whoever_stops_iterating_stops_the_training() -> None:
    recipe, train = small_recipe(fit={"epochs": 50}), digits_from(0, 200)
    classifier = fresh(recipe, train.images)

    one = next(fit(classifier, recipe, train, NOTHING))

    assert one.metrics["epoch"] == 1
    assert same_weights(classifier, fitted_one_epoch(recipe, train))


def fitted_one_epoch(recipe: Recipe, train: Labelled) -> Classifier:
    classifier = fresh(recipe, train.images)
    for epoch in fit(classifier, recipe, train, NOTHING):
        assert epoch.state["epoch"] == 1
        break
    return classifier


def test_finished_training_is_not_trained_further() -> None:
    recipe, train = small_recipe(), digits_from(0, 200)
    classifier = fresh(recipe, train.images)
    *_, last = fit(classifier, recipe, train, NOTHING)
    again = fresh(recipe, train.images, seed=99)

    assert list(fit(again, recipe, train, NOTHING, saved(last.state))) == []
    assert same_weights(again, classifier)


def test_every_step_is_counted() -> None:
    recipe, counted = small_recipe(encoder=MLP, fit={"epochs": 3, "batch_size": 64}), []

    list(
        fit(
            fresh(recipe, digits_from(0, 8).images),
            recipe,
            digits_from(0, 130),
            NOTHING,
            on_step=lambda: counted.append(1),
        )
    )

    assert len(counted) == 3 * 3


def test_rate_that_is_too_high_stops_with_epoch_and_step() -> None:
    recipe = small_recipe(fit={"optimizer": "sgd", "lr": 1e30})

    with pytest.raises(
        DivergedError, match=r"^loss must be finite, got (nan|inf) in epoch 1, step [2-4]: .* than 1e\+30 or "
    ):
        fitted(recipe, digits_from(0, 256))


@pytest.mark.parametrize("bad_step", [3, 20])
def test_divergence_names_epoch_and_step(bad_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 20th of 25 steps lies behind a look at the losses that found nothing."""
    recipe, train = small_recipe(fit={"epochs": 3, "batch_size": 8}), digits_from(0, 200)
    calls, build_loss = itertools.count(1), fit_module.build_loss
    monkeypatch.setattr(
        fit_module,
        "build_loss",
        lambda *spec: lambda *batch: build_loss(*spec)(*batch) * (math.nan if next(calls) == 25 + bad_step else 1),
    )
    epochs = fit(fresh(recipe, train.images), recipe, train, NOTHING)

    good = saved(next(epochs).state)
    with pytest.raises(DivergedError, match=rf"got nan in epoch 2, step {bad_step}: the last good checkpoint is kept"):
        next(epochs)

    assert good["epoch"] == 1
    assert all(value.isfinite().all() for value in good["classifier"].values())


def test_weights_that_the_last_step_ruins_are_not_handed_out() -> None:
    """One step an epoch: its loss is that of the weights before the step."""
    recipe = small_recipe(
        encoder={"kind": "linear", "dim": 3}, loss={"kind": "nll"}, fit={"optimizer": "sgd", "lr": 1e38, "epochs": 1}
    )
    train = digits_from(0, 64)

    with pytest.raises(DivergedError, match=r"^weights must be finite, got others in \S+ after epoch 1, step 1: "):
        next(fit(fresh(recipe, train.images), recipe, train, NOTHING))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_runs_with_every_schedule(optimizer: str, schedule: str) -> None:
    spec = {"optimizer": optimizer, "schedule": schedule, "lr": 0.003, "epochs": 5, "batch_size": 32}
    recipe = small_recipe(encoder=MLP, fit=spec)

    _, epochs = fitted(recipe, digits_from(0, 320))

    assert epochs[-1]["loss"] < epochs[0]["loss"]
    rates = [line["lr"] for line in epochs]
    if schedule == "constant":
        assert rates == [0.003] * 5
    elif schedule == "cosine":
        assert rates == pytest.approx([0.0015 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)])
    else:
        assert rates[0] == pytest.approx(0.003 / 25)
        assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
        assert 0.0025 < max(rates) <= 0.003


def test_schedules_fall_to_almost_nothing_at_the_last_step() -> None:
    last_cosine = 0.05 * (1 + math.cos(math.pi * 19 / 20))
    for schedule, first, last in (("cosine", 0.1, last_cosine), ("one-cycle", 0.1 / 25, 0.1 / 25e4)):
        spec = FitSpec(epochs=2, lr=0.1, schedule=schedule, optimizer="sgd")
        optimizer = build_optimizer(torch.nn.Linear(2, 2), spec)
        steps = build_schedule(optimizer, spec, steps=10)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            steps.step()

        assert rates[0] == pytest.approx(first)
        assert max(rates) == pytest.approx(0.1)
        assert rates[-1] == pytest.approx(last)


@pytest.mark.parametrize(("schedule", "length"), [("cosine", "T_max"), ("one-cycle", "total_steps")])
@pytest.mark.parametrize("count", [128, 129, 130])
def test_schedule_ends_with_the_last_step_whatever_the_last_batch(schedule: str, length: str, count: int) -> None:
    """Of 129 images in batches of 64, the lone last one is left out."""
    recipe = small_recipe(
        encoder=MLP, fit={"epochs": 2, "schedule": schedule, "lr": 0.1, "batch_size": 64, "optimizer": "sgd"}
    )
    train = digits_from(0, count)

    *_, end = fit(fresh(recipe, train.images), recipe, train, NOTHING)

    assert end.state["schedule"]["last_epoch"] == end.state["schedule"][length] == 2 * (3 if count == 130 else 2)


def test_optimizer_takes_its_settings_from_the_recipe() -> None:
    recipe = small_recipe(encoder={"dim": 9}, head={"kind": "lda", "simplex": True})
    classifier = fresh(recipe, digits_from(0, 8).images)
    expected = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

    for name, kind in expected.items():
        optimizer = build_optimizer(
            classifier, FitSpec(epochs=1, optimizer=name, lr=0.5, weight_decay=0.25, momentum=0.75)
        )

        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.25)
        assert optimizer.defaults.get("momentum", 0.75) == 0.75
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        frozen = classifier.head.gaussians.means
        assert trained == {id(parameter) for parameter in classifier.parameters()} - {id(frozen)}


def test_a_single_step_in_all_is_enough_for_every_schedule() -> None:
    for schedule in ("constant", "cosine", "one-cycle"):
        recipe = small_recipe(encoder=MLP, fit={"epochs": 1, "schedule": schedule})

        _, epochs = fitted(recipe, digits_from(0, 64))

        assert [line["epoch"] for line in epochs] == [1]


def test_bfloat16_learns_too_and_keeps_weights_in_float32() -> None:
    train = digits_from(0, 600)
    spec = {"epochs": 4, "lr": 0.02}
    seen = []

    recipe = small_recipe(encoder={"width": 8, "dim": 9}, fit={**spec, "precision": "bfloat16"})
    classifier = fresh(recipe, train.images)
    classifier.encoder.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    *_, last = fit(classifier, recipe, train, NOTHING)

    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in classifier.state_dict().values()} == {torch.float32, torch.int64}
    assert last.metrics["train_accuracy"] > 0.85


def test_compile_compiles_the_encoder_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))

    fitted(small_recipe(encoder=MLP, fit={"epochs": 1}), digits_from(0, 64))
    assert compiled == []
    classifier, _ = fitted(small_recipe(encoder=MLP, fit={"epochs": 1, "compile": True}), digits_from(0, 64))
    assert compiled == [classifier.encoder]


@pytest.mark.parametrize(("epochs", "sides"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8]), (5, [4, 6, 6, 8, 8])])
def test_scales_share_the_epochs_and_end_at_the_full_size(
    monkeypatch: pytest.MonkeyPatch, epochs: int, sides: list[int]
) -> None:
    recipe = small_recipe(fit={"epochs": epochs, "scales": [0.5, 0.75, 1.0]})
    seen: list[tuple[int, int]] = []
    normalise = Classifier.normalise

    def spy(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        seen.append((images.shape[2], images.shape[3]))
        return normalise(self, images)

    monkeypatch.setattr(Classifier, "normalise", spy)
    fitted(recipe, digits_from(0, 64))

    assert seen == [(side, side) for side in sides]


def test_epoch_without_validation_images_has_no_validation_metrics() -> None:
    _, epochs = fitted(small_recipe(encoder=MLP, fit={"epochs": 1}), digits_from(0, 100))

    assert set(epochs[0]) == {"epoch", "loss", "train_accuracy", "lr", "seconds", "images_per_s"}


def test_validation_metrics_are_accuracy_and_mean_negative_log_posterior() -> None:
    recipe, data = small_recipe(), digits_from(0, 30)
    classifier = fresh(recipe, data.images).eval()
    posterior = classifier(data.images).log_joints.detach().double().softmax(1)
    right = [int(row.argmax()) == int(label) for row, label in zip(posterior, data.labels, strict=True)]
    surprises = [-math.log(row[label]) for row, label in zip(posterior, data.labels, strict=True)]

    metrics = validation_metrics(classifier, data, batch_size=7)

    assert metrics["validation_accuracy"] == pytest.approx(sum(right) / 30)
    assert metrics["validation_nll"] == pytest.approx(sum(surprises) / 30, rel=1e-5)
