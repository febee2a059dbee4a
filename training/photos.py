"""Photos that lie in installed packages: something to show a model of photos, without a download or an import.

scikit-learn: a Chinese temple, a dahlia; scikit-image: a cat, a cup of coffee, a rocket, and three textures
"""

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path

from training.data import DataError
from training.progress import warn

PHOTOS = {  # by what they show: the package's name to install and to import, and the file in it
    "temple": ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
    "dahlia": ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
    "cat": ("scikit-image", "skimage", "data/chelsea.png"),
    "coffee": ("scikit-image", "skimage", "data/coffee.png"),
    "rocket": ("scikit-image", "skimage", "data/rocket.jpg"),
}
TEXTURES = {  # likewise, gray and 512 x 512
    "grass": ("scikit-image", "skimage", "data/grass.png"),
    "gravel": ("scikit-image", "skimage", "data/gravel.png"),
    "bricks": ("scikit-image", "skimage", "data/brick.png"),
}


def find_photo(name: str) -> Path:
    """The file of one of PHOTOS or TEXTURES.

    Raises:
        DataError: if its package is not installed, or comes without it.
    """
    package, module, inside = (PHOTOS | TEXTURES)[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise DataError(f"{package} must be installed for the photo {name}, got none: pip install {package}")
    file = Path(found.origin).parent / inside
    if not file.is_file():
        raise DataError(f"{package} must have the photo {name}, got no {file}: install another version")
    return file


def write_photos(folder: Path, names: Iterable[str] = PHOTOS) -> list[Path]:
    """Copy photos into a folder as they are, named after what they show; one that cannot be had is warned of."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        try:
            source = find_photo(name)
        except DataError as exc:
            warn(str(exc))
            continue
        written.append(folder / f"{name}{source.suffix}")
        shutil.copyfile(source, written[-1])
    return written
