"""How right is a head on a pretrained network's features that has seen few photos of a class?

Measured on the user's own photos (FOLDER/train/<class>/, FOLDER/test/<class>/) and on CIFAR-10 scaled up: the recipe
`images`; logistic regression and nearest neighbours on the same features, before their square roots; and the recipe
`images-small`, which learns from the drawn images alone. What takes long is kept in cache/photographs, so that a study
that was broken off goes on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.table import Table

from training.classifier import Classifier, build_classifier
from training.digests import digest_of, recipe_digest
from training.features import head_stage
from training.figures import COLOURS, MARKERS, new_figure, percent_axis, save_figure, tidy
from training.images import Labelled
from training.photo_tables import METHODS, SCALINGS, accuracies_of, rows_of_photos, spread_of
from training.power import Power
from training.progress import steps
from training.recipe import Recipe, load_recipe
from training.studies import few_images
from training.studies.few_images import Figures, draws_of
from training.studies.photo_sets import Given, PhotoSet, cifar10, given, photos_in
from training.studies.study import Outcome, Setting
from training.train import architecture_of

RECIPE, FROM_SCRATCH = "images", "images-small"
SIZES = (5, 10, 20, 60)  # images a class
CIFAR10_SIZES = (20, 50, 200)
DRAWS = 5

Method = Callable[[Given], Figures]


def parameters(
    sizes: Sequence[int] = SIZES, cifar10_sizes: Sequence[int] = CIFAR10_SIZES, draws: int = DRAWS
) -> dict[str, Any]:
    """What decides the figures, as plain values."""
    return {
        "sizes": sizes,
        "cifar10_sizes": cifar10_sizes,
        "draws": draws,
        "recipes": [recipe_digest(load_recipe(name)[1]) for name in (RECIPE, FROM_SCRATCH)],
        "strengths": few_images.STRENGTHS,
        "neighbours": few_images.NEIGHBOURS,
        "folds": few_images.FOLDS,
    }


def run(
    setting: Setting,
    sizes: Sequence[int] = SIZES,
    cifar10_sizes: Sequence[int] = CIFAR10_SIZES,
    draws: int = DRAWS,
) -> Outcome:
    """Measure on the folder's photos, and on CIFAR-10 unless it has no sizes.

    Raises:
        DataError: if there is no folder of photos, or it is not laid out as train and test.
    """
    recipe, small = load_recipe(RECIPE)[1], load_recipe(FROM_SCRATCH)[1]
    wanted = [(photos_in(setting, recipe, small), sizes)]
    if cifar10_sizes:
        wanted.append((cifar10(setting, recipe, small), cifar10_sizes))
    sets = {photos.name: _measure(photos, of_set, draws, setting) for photos, of_set in wanted}
    figures = {"sets": sets}
    head, rows = rows_of_photos(figures)
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row)
    picture = save_figure(_draw(sets), setting.out / "photographs.png")
    made_from = digest_of(parameters(sizes, cifar10_sizes, draws))
    return Outcome(figures, table, made_from, (picture,), "mean ± standard deviation over the draws")


def _measure(photos: PhotoSet, sizes: Sequence[int], draws: int, setting: Setting) -> dict[str, Any]:
    """Every method at every draw of a set, by size."""
    recipe, by_size = load_recipe(RECIPE)[1], draws_of(photos.train.labels, sizes, draws)
    methods = _methods(photos, recipe, setting)
    found: dict[str, Any] = {str(size): {} for size in by_size}
    with steps(f"photographs: {photos.name}", len(methods) * sum(map(len, by_size.values()))) as bar:
        for drawn in given(photos, by_size, recipe, setting):
            for name, method in methods.items():
                if name != FROM_SCRATCH or len(drawn.train) >= _fewest():
                    of_method = found[str(drawn.size)].setdefault(name, {})
                    for key, value in method(drawn).items():
                        of_method.setdefault(key, []).append(round(value, 6))
                bar.advance()
    classes, tested = len(photos.train.classes), len(photos.test.labels)
    return {"classes": classes, "test_images": tested, "by_images_a_class": found}


def _fewest() -> int:
    """The images that `images-small` needs to fit a head to: as many as it has principal components."""
    refit = load_recipe(FROM_SCRATCH)[1].refit
    return refit.dim if refit is not None and refit.dim is not None else 1


def _methods(photos: PhotoSet, recipe: Recipe, setting: Setting) -> dict[str, Method]:
    """How each method is measured, by name."""
    stage = head_stage(build_classifier(architecture_of(recipe, photos.train)).to(setting.device))
    logistic = {
        name: few_images.kept(
            setting.cache / "photographs",
            f"{name} {few_images.STRENGTHS} {few_images.FOLDS}",
            partial(few_images.measure_logistic, standardised=name == SCALINGS["logistic regression"][1]),
        )
        for name in SCALINGS["logistic regression"]
    }
    return {
        "images": lambda drawn: _of_recipe(stage, recipe, drawn),
        **{name: partial(_on_features, one) for name, one in logistic.items()},
        "k-NN": partial(_on_features, few_images.measure_neighbours),
        "images-small": lambda drawn: _from_scratch(drawn, len(photos.train.classes), setting),
    }


def _of_recipe(stage: Classifier, recipe: Recipe, drawn: Given) -> Figures:
    """The recipe's head on what its encoder makes of the features, folds and starts by the number of the draw."""
    power = Power(drawn.train.images.shape[1]) if recipe.encoder.power else None
    seeded = recipe.model_copy(update={"seed": drawn.seed})
    train, test = (_in_roots(part, power) for part in (drawn.train, drawn.test))
    on_device = Labelled(train.images.to(stage.mean.device), train.labels.to(stage.mean.device))
    return few_images.measure_head(stage, seeded, on_device, test)


def _in_roots(features: Labelled, power: Power | None) -> Labelled:
    if power is None:
        return features
    return Labelled(power(features.images.flatten(1))[:, :, None, None], features.labels)


def _on_features(measure: few_images.Measure, drawn: Given) -> Figures:
    return measure(drawn.train, drawn.test)


def _from_scratch(drawn: Given, classes: int, setting: Setting) -> Figures:
    recipe = load_recipe(FROM_SCRATCH)[1].model_copy(update={"seed": drawn.seed})
    name = f"{FROM_SCRATCH} {recipe_digest(recipe)} {recipe.seed} {setting.device.type}"
    measure = few_images.kept(
        setting.cache / "photographs", name, partial(few_images.measure_from_scratch, recipe, classes=classes)
    )
    return measure(drawn.small_train, drawn.small_test)


def _draw(sets: dict[str, Any]) -> Any:
    """A panel a set: accuracy by images a class, a line a method, its deviation over the draws as bars."""
    figure, axes = new_figure(4.8 * len(sets) + 1, 4.2, 1, len(sets))
    for panel, (name, of_set) in zip(axes[0], sets.items(), strict=True):
        by_size = {int(size): measured for size, measured in of_set["by_images_a_class"].items()}
        for index, method in enumerate(METHODS):
            spreads = {size: spread_of(of) for size in by_size if (of := accuracies_of(by_size[size], method))}
            means, deviations = zip(*spreads.values(), strict=True) if spreads else ((), ())
            look = {"color": COLOURS[index], "marker": MARKERS[index], "capsize": 3, "label": method}
            panel.errorbar([*spreads], means, deviations, **look)
        panel.set_xscale("log")
        panel.set_xticks([*by_size], map(str, by_size))
        panel.minorticks_off()
        percent_axis(panel.yaxis)
        tidy(panel, title=f"{name}: {of_set['test_images']:,} test images", x="images a class", y="accuracy")
    axes[0, 0].legend(frameon=False)
    return figure
