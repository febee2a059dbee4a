"""What int8 brings, measured."""

import math
from pathlib import Path

import pytest
from conftest import with_int8

from serving.errors import ServingError
from serving.speedup import measured_speedup, told


def test_both_graphs_are_timed_in_a_process_of_their_own(bundle_dir: Path, tmp_path: Path) -> None:
    speedup = measured_speedup(with_int8(bundle_dir, tmp_path / "1"), threads=1)

    assert 0 < speedup < math.inf


def test_a_bundle_that_cannot_be_measured_is_told_with_its_reason(bundle_dir: Path) -> None:
    reason = r"serving\.errors\.BundleError: precision of .* must be float32, got int8"
    with pytest.raises(ServingError, match=rf"^both graphs of {bundle_dir} must compute, got {reason}"):
        measured_speedup(bundle_dir, threads=1)


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [
        (3.42, "int8 computes m 3.4 times as fast as float32 here"),
        (1.1, "int8 computes m 1.1 times as fast as float32 here"),
        (1.0, "int8 brings nothing on this CPU (1.0 times float32's speed): serve m in float32"),
        (0.9, "int8 brings nothing on this CPU (0.9 times float32's speed): serve m in float32"),
    ],
)
def test_what_a_speedup_means(speedup: float, expected: str) -> None:
    assert told("m", speedup) == expected
