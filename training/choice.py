"""Which recipe suits a folder: photos go through a pretrained backbone, which tells little of a few dozen pixels.

choice = choose_recipe(Path("photos"))
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from training.folders import list_folder
from training.progress import say

PHOTOS, SMALL = "images", "images-small"  # recipes
PHOTO_SIDE = 96  # pixels; the median shorter side of photos
SAMPLE = 200  # images whose headers are read


def chosen_recipe(folder: Path) -> str:
    """Choose between the recipes for photos and for small pictures by the headers of a sample, and say it.

    Raises:
        DataError: if the folder is not one of class folders.
    """
    files = [folder / file.name for of_class in list_folder(folder).classes.values() for file in of_class]
    sides = _shorter_sides(files[:: max(1, len(files) // SAMPLE)])
    side = median(sides) if sides else PHOTO_SIDE
    if side >= PHOTO_SIDE:
        recipe, other, rule = PHOTOS, SMALL, f"at least {PHOTO_SIDE}"
    else:
        recipe, other, rule = SMALL, PHOTOS, f"less than {PHOTO_SIDE}"
    say(f"recipe {recipe}, for the median image's shorter side is {side:.0f} pixels, {rule}")
    say(f"the other one is taken by  python -m training train {other} --data {folder}")
    return recipe


def _shorter_sides(files: Sequence[Path]) -> list[int]:
    """In pixels, of the files that have a header."""
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is decoded
        for file in files:
            try:
                with Image.open(file, formats=["PNG", "JPEG", "WEBP"]) as picture:
                    sides.append(min(picture.size))
            except Exception:  # a broken image can raise anything in Pillow; it is named when the folder is read
                continue
    return sides
