"""Studies: one question each, answered by figures, a picture and a JSON file.

python -m training study parameter-growth
"""

from collections.abc import Callable

from training.studies import box_regression, class_means, parameter_growth, shift_invariance
from training.studies.study import Outcome, Setting

STUDIES: dict[str, Callable[[Setting], Outcome]] = {
    "box-regression": box_regression.run,
    "class-means": class_means.run,
    "parameter-growth": parameter_growth.run,
    "shift-invariance": shift_invariance.run,
}
