"""What a graph of another precision costs, by hand, and when it costs too much."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from serving.bundle import Variant, VariantCost
from training.variant_costs import VariantError, cost_of, require_cheap

LABELS = torch.tensor([0, 1, 1, 0])
SURE = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
COST: dict[str, Any] = {
    "split": "validation",
    "images": 2000,
    "accuracy": (0.9, 0.9),
    "nll": (0.3, 0.3),
    "ece": (0.02, 0.02),
    "agreement": 1.0,
    "density_shift": {"0.01": 0.0, "0.5": 0.0, "0.99": 0.0},
    "density_spread": 10.0,
}


def test_agreement_is_of_class_and_component() -> None:
    components = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.3, 0.7]]] * 2)
    exact = {"posterior": SURE, "responsibilities": components}
    other_component = {"posterior": SURE, "responsibilities": components.copy()}
    other_component["responsibilities"][1, 1] = [0.6, 0.4]  # of its class
    other_component["responsibilities"][0, 1] = [0.1, 0.9]  # of a class that it is not of
    other_class = {"posterior": SURE[[0, 1, 1, 3]], "responsibilities": components}

    assert cost_of("test", exact, exact, LABELS).agreement == 1
    assert cost_of("test", exact, other_component, LABELS).agreement == 0.75
    assert cost_of("test", exact, other_class, LABELS).agreement == 0.75


@pytest.mark.parametrize("responsibilities", [{}, {"responsibilities": np.ones((4, 2, 1))}])
def test_agreement_of_a_head_with_one_component_is_of_the_class(responsibilities: dict[str, np.ndarray]) -> None:
    exact, quick = ({"posterior": posterior} | responsibilities for posterior in (SURE, SURE[:, ::-1].copy()))

    assert cost_of("test", exact, exact, LABELS).agreement == 1
    assert cost_of("test", exact, quick, LABELS).agreement == 0


def test_metrics_are_of_both_graphs() -> None:
    quick = {"posterior": SURE.copy()}
    quick["posterior"][2] = [0.3, 0.7]  # right now

    cost = cost_of("validation", {"posterior": SURE}, quick, LABELS)

    assert (cost.split, cost.images, cost.accuracy) == ("validation", 4, (0.75, 1.0))
    before = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.7)) / 4
    assert cost.nll == pytest.approx((before, before + (math.log(0.4) - math.log(0.7)) / 4), abs=1e-5)
    assert cost.ece == pytest.approx(((0.1 + 0.2 + 0.6 + 0.3) / 4, (0.1 + 0.2 + 0.3 + 0.3) / 4), abs=1e-5)
    assert cost.density_shift is cost.density_spread is None


def test_shift_of_the_density_is_by_quantiles_in_nats() -> None:
    density = np.arange(101, dtype=np.float32)
    shift = np.linspace(-1, 3, 101, dtype=np.float32)[::-1]
    posterior, labels = np.full((101, 2), 0.5), torch.zeros(101, dtype=torch.int64)

    exact, quick = ({"posterior": posterior, "log_density": one} for one in (density, density + shift))
    cost = cost_of("test", exact, quick, labels)

    assert cost.density_shift == pytest.approx({"0.01": -0.96, "0.5": 1.0, "0.99": 2.96}, abs=1e-3)
    assert cost.density_spread == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": (0.9, 0.897)}, "accuracy in int8 must be within 0.2% of 90.00% on {}, got 89.70%"),
        ({"agreement": 0.96}, "assignments in int8 must agree for 97% on {}, got 96.00%"),
        ({"nll": (0.3, 0.308)}, "NLL in int8 must be at most 0.3070 nats on {}, got 0.3080"),
        ({"nll": (0.0145, 0.0186)}, "NLL in int8 must be at most 0.0158 nats on {}, got 0.0186"),
        ({"nll": (0.3, math.nan)}, "NLL in int8 must be at most 0.3070 nats on {}, got nan"),
        ({"ece": (0.02, 0.026)}, "ECE in int8 must be at most 2.50% on {}, got 2.60%"),
        (
            {"density_shift": {"0.5": -0.4}},
            "log-density in int8 must shift by at most 0.300 nats at the 50% quantile on {}, got -0.400",
        ),
        (
            {"density_shift": {"0.01": -2.6, "0.5": 0.1}},
            "log-density in int8 must shift by at most 2.500 nats at the 1% quantile on {}, got -2.600",
        ),
        (
            {"density_shift": {"0.5": 0.1, "0.99": 2.6}},
            "log-density in int8 must shift by at most 2.500 nats at the 99% quantile on {}, got +2.600",
        ),
    ],
)
def test_a_variant_that_costs_too_much_is_refused(change: dict[str, Any], message: str) -> None:
    cost = VariantCost.model_validate(COST | change)

    expected = message.format("2,000 validation images") + ": export without --int8"
    with pytest.raises(VariantError, match=f"^{re.escape(expected)}$"):
        require_cheap("int8", cost)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"accuracy": (0.9, 0.898)},
        {"accuracy": (0.9, 0.95)},
        {"agreement": 0.97},
        {"nll": (0.3, 0.3069)},
        {"nll": (0.3, 0.2)},
        {"ece": (0.02, 0.0249)},
        {"density_shift": {"0.01": -2.5, "0.5": 0.3, "0.99": 2.5}},
        {"density_shift": None, "density_spread": None},
        {"images": 20, "accuracy": (0.9, 0.85), "agreement": 0.95, "ece": (0.02, 0.06)},  # one of few images
    ],
)
def test_a_variant_within_its_bounds_is_kept(change: dict[str, Any]) -> None:
    require_cheap("float16", VariantCost.model_validate(COST | change))


def test_two_of_few_images_are_too_many() -> None:
    with pytest.raises(
        VariantError, match=r"^accuracy in int8 must be within 5\.0% of 90\.00% on 20 train images, got 80"
    ):
        require_cheap(
            "int8", VariantCost.model_validate(COST | {"split": "train", "images": 20, "accuracy": (0.9, 0.8)})
        )


def test_what_older_bundles_say_of_a_variant_is_read() -> None:
    for old in ({"accuracy": 0.9954, "agreement": 0.9927}, {"accuracy": 0.9954}):
        assert Variant.model_validate(old).judged is None
