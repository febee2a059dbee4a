"""Digests of recipes: what changes them, what does not; a temperature is kept by the recipe that it was found for."""

import re
import tomllib
from pathlib import Path

import pytest

from training.digests import digest_of, recipe_digest, speed_digest, temperature_digest
from training.recipe import RecipeError, dump_recipe, load_recipe, parse_recipe, recipe_names
from training.run import Run


def test_digest_is_that_of_the_values_whatever_their_order() -> None:
    assert digest_of({"b": [1, 2], "a": None}) == digest_of({"a": None, "b": [1, 2]})
    assert re.fullmatch(r"[0-9a-f]{16}", digest_of({}))
    assert digest_of([1, 2]) != digest_of([2, 1])


@pytest.mark.parametrize(
    ("override", "of_recipe", "of_speed", "of_temperature"),
    [
        ("seed=7", False, False, False),
        ("description='another'", False, False, False),
        ("fit.momentum=0.9", False, False, False),  # the default, written out
        ("fit.epochs=3", True, False, True),
        ("fit.precision=bfloat16", False, True, False),
        ("fit.compile=true", False, True, False),
        ("data.validation=0.2", True, True, False),
        ("data.test=0.3", True, True, True),
        ("encoder.dim=4", True, True, True),
        ("loss.weight=0.5", True, True, True),
        ("fit.lr=0.1", True, True, True),
        ("refit.ridge=0.5", True, False, True),
        ("calibration.temperature=2.0", True, False, False),
        ("calibration.found_for=abc", False, False, False),
        ("calibration.components=none", True, False, False),
        ("calibration.components=bootstrap", False, False, False),  # as the recipe has it
    ],
)
def test_digest_changes_with_what_it_is_for(
    override: str, of_recipe: bool, of_speed: bool, of_temperature: bool
) -> None:
    before, after = (load_recipe("fashion-mnist-mda-best", overrides)[1] for overrides in ([], [override]))

    assert (recipe_digest(before) != recipe_digest(after)) == of_recipe
    assert (speed_digest(before) != speed_digest(after)) == of_speed
    assert (temperature_digest(before) != temperature_digest(after)) == of_temperature


# A temperature in numbers

OWN = temperature_digest(load_recipe("mnist-mda")[1])
GIVEN = ["calibration.temperature=21.63", f"calibration.found_for='{OWN}'"]


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_with_a_temperature_name_themselves(name: str, tmp_path: Path) -> None:
    _, recipe = load_recipe(name)

    assert not Run.create(name, recipe, "a", tmp_path).has_begun


def test_temperature_survives_what_it_does_not_depend_on(tmp_path: Path) -> None:
    _, recipe = load_recipe("mnist-mda", [*GIVEN, "seed=4", "fit.precision=float32", "data.validation=0.1"])

    assert Run.create("mnist-mda", recipe, "a", tmp_path).recipe.calibration == recipe.calibration


@pytest.mark.parametrize("override", ["fit.epochs=3", "refit.components=2", "encoder.dim=12", "data.name=digits"])
def test_temperature_of_another_recipe_is_refused(override: str, tmp_path: Path) -> None:
    _, recipe = load_recipe("mnist-mda", [*GIVEN, override])

    with pytest.raises(RecipeError) as refused:
        Run.create("mnist-mda", recipe, "a", tmp_path)

    assert str(refused.value) == (
        "calibration.temperature 21.63 must be found for this very recipe (calibration.found_for = "
        f'"{temperature_digest(recipe)}"), got {OWN}: find it anew with '
        "--set calibration.temperature=fit --set data.validation=0.1"
    )
    assert not list(tmp_path.iterdir())


def test_temperature_that_names_no_recipe_is_refused(tmp_path: Path) -> None:
    _, recipe = load_recipe("digits-mda", ["calibration.temperature=3.0"])

    with pytest.raises(RecipeError, match=r"must be found for this very recipe .*, got None: find it anew"):
        Run.create("digits-mda", recipe, "a", tmp_path)


def test_what_the_refusal_says_helps(tmp_path: Path) -> None:
    advice = ["calibration.temperature=fit", "data.validation=0.1"]
    _, recipe = load_recipe("mnist-mda", ["fit.epochs=3", *advice])

    assert Run.create("mnist-mda", recipe, "a", tmp_path).recipe.data.validation == 0.1


def test_recipe_in_a_bundle_of_before_holds_a_temperature_that_names_no_recipe_and_loads() -> None:
    tree = tomllib.loads(dump_recipe(load_recipe("mnist-mda")[1]))

    recipe = parse_recipe({**tree, "calibration": {"temperature": 21.63, "share": 0.08}})

    assert recipe.calibration is not None
    assert (recipe.calibration.temperature, recipe.calibration.found_for) == (21.63, None)
    assert temperature_digest(recipe) == OWN


def test_temperature_of_components_is_held_to_its_recipe_too(tmp_path: Path) -> None:
    _, recipe = load_recipe("digits-mda", ["calibration.components=3.0"])
    own = temperature_digest(recipe)

    with pytest.raises(RecipeError) as refused:
        Run.create("digits-mda", recipe, "a", tmp_path)

    assert str(refused.value) == (
        "calibration.components 3 must be found for this very recipe (calibration.found_for = "
        f'"{own}"), got None: find it anew with --set calibration.components=bootstrap'
    )
    _, named = load_recipe("digits-mda", ["calibration.components=3.0", f"calibration.found_for='{own}'"])
    assert not Run.create("digits-mda", named, "a", tmp_path).has_begun
