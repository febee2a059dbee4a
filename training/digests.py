"""Digests of what a figure was made from, so that it can be told later whether that is still there.

    recipe_digest(load_recipe("mnist-mda")[1])      # 16 hexadecimal digits

A value that is the schema's default counts as not written: a new key whose default is what was done before changes no
digest. Names, descriptions, notes and seeds decide nothing that a digest is for.
"""

import hashlib
import json
from typing import Any

from training.recipe import Recipe, RecipeError

DIGITS = 16  # hexadecimal
HOW = {"fit": {"precision", "compile"}}  # how it is computed, not what
FOUND_BY = {  # temperatures, and what finds them
    "temperature": "--set calibration.temperature=fit --set data.validation=0.1",
    "components": "--set calibration.components=bootstrap",
}


def digest_of(values: Any) -> str:
    """The digest of plain values, the same whatever the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]


def recipe_digest(recipe: Recipe) -> str:
    """The digest of what a recipe trains, whatever the precision."""
    return digest_of(_values(recipe, {**HOW, "calibration": {"found_for"}}))


def speed_digest(recipe: Recipe) -> str:
    """The digest of what a step of training computes, precision and compilation included; nothing that comes after."""
    return digest_of(_values(recipe, {"fit": {"epochs"}, "refit": True, "calibration": True}))


def temperature_digest(recipe: Recipe) -> str:
    """The digest of what a temperature depends on: data less the validation split, encoder, head, loss, fit, refit."""
    held_out = {"held_out": recipe.held_out_share} if recipe.held_out_share else {}
    return digest_of(_values(recipe, {**HOW, "data": {"validation"}, "calibration": True}) | held_out)


def require_own_temperature(recipe: Recipe) -> None:
    """Refuse temperatures in numbers that were found for another recipe.

    Raises:
        RecipeError: if `calibration.found_for` is not the recipe's digest.
    """
    calibration = recipe.calibration
    if calibration is None:
        return
    for key, cure in FOUND_BY.items():
        temperature: float | str = getattr(calibration, key)
        if isinstance(temperature, str) or (own := temperature_digest(recipe)) == calibration.found_for:
            continue
        raise RecipeError(
            f"calibration.{key} {temperature:g} must be found for this very recipe "
            f'(calibration.found_for = "{own}"), got {calibration.found_for}: find it anew with {cure}'
        )


def _values(recipe: Recipe, left_out: dict[str, Any]) -> dict[str, Any]:
    return recipe.model_dump(
        mode="json", exclude_defaults=True, exclude={"description": True, "seed": True, **left_out}
    )
