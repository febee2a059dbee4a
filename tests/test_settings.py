"""The settings of a model's workers."""

import pytest

from serving.errors import ServerError
from serving.limits import Limits
from serving.settings import WorkerSettings, changed


def test_changes_keep_what_they_do_not_name() -> None:
    packaged = WorkerSettings(batch_size=8, workers=2, limits=Limits(max_instances=10))

    assert changed(packaged, threads=1, workers=None, max_bytes=100) == WorkerSettings(
        batch_size=8, workers=2, threads=1, limits=Limits(max_instances=10, max_bytes=100)
    )


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("batch_size", 0, "greater than or equal to 1"),
        ("max_pixels", -1, "greater than or equal to 1"),
        ("timeout_s", 9, "greater than or equal to 10"),
        ("precision", "int4", "'float32', 'float16' or 'int8'"),
    ],
)
def test_a_change_that_breaks_its_rule_is_named(name: str, value: object, rule: str) -> None:
    with pytest.raises(ServerError, match=rf"^{name} must be {rule}, got {value!r}$"):
        changed(WorkerSettings(), **{name: value})
