"""Studies: one question each, answered by figures, a picture and a JSON file.

python -m training study parameter-growth
"""

from collections.abc import Callable
from typing import Any

from training.digests import digest_of
from training.studies import box_regression, class_means, parameter_growth, photographs, shift_invariance
from training.studies.study import Outcome, Setting, of_recipes

STUDIES: dict[str, Callable[[Setting], Outcome]] = {
    "box-regression": box_regression.run,
    "class-means": class_means.run,
    "parameter-growth": parameter_growth.run,
    "photographs": photographs.run,
    "shift-invariance": shift_invariance.run,
}

MEASURED_ON = {
    "box-regression": "squares drawn without noise, at places within those of the training",
    "class-means": "the training split",
    "parameter-growth": "no images",
    "photographs": "test images that no draw has",
    "shift-invariance": "the test split",
}

MADE_FROM: dict[str, Callable[[dict[str, Any]], str]] = {
    "box-regression": lambda record: digest_of(box_regression.parameters()),
    "class-means": lambda record: of_recipes([record["run"]]),
    "parameter-growth": lambda record: digest_of(parameter_growth.parameters()),
    "photographs": lambda record: digest_of(photographs.parameters()),
    "shift-invariance": lambda record: of_recipes(record["recipes"]),
}
"""The digest of what a study with these figures would be made from today."""
