"""What a graph of another precision costs, and how much it may.

cost = cost_of("validation", exact, quick, labels)
require_cheap("int8", cost)

Rounding decides otherwise where two classes, or two components of one, are about as likely: of a network of 100 classes
that errs on 30 % of the images, 8 bits change 2 % of the classes and nothing of the accuracy. So some disagreement is
allowed, and what it does to accuracy, likelihood and calibration is bounded.

The log-density is bounded against its own spread, for it is compared with quantiles that were measured in float32. A
shift of the median moves all images alike: 3 % of the spread takes the share below the 1 % quantile to 1.1 % at most
where densities are about normal. A quarter of the spread, at most, is what one image in a hundred may be off by.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from serving.bundle import VariantCost, VariantPrecision
from serving.runtimes import Outputs
from training.evaluate import measure

MOST_ACCURACY_LOST = 0.002
LEAST_AGREEMENT = 0.97
MOST_NLL_GAINED = 0.02, 0.001  # of the NLL in float32, and nats besides: less than the next seed changes
MOST_ECE_GAINED = 0.005
MOST_DENSITY_SHIFT = {"0.01": 0.25, "0.5": 0.03, "0.99": 0.25}  # of the spread, either way, by quantile of the shifts


class VariantError(ValueError):
    """A graph of another precision answers too differently."""


def cost_of(split: str, exact: Outputs, quick: Outputs, labels: Tensor) -> VariantCost:
    """Compare what two graphs answer for the same images.

    Args:
        split: which the images are from.
        exact: of the float32 graph.
        quick: of the variant.
        labels: int64 (N,).
    """
    before, after = measure(exact, labels), measure(quick, labels)
    fields = {name: (before[name], after[name]) for name in ("accuracy", "nll", "ece")}
    agreement = float((assignments(exact) == assignments(quick)).all(1).mean())
    return VariantCost.model_validate(
        {"split": split, "images": len(labels), "agreement": round(agreement, 6), **fields, **_of_density(exact, quick)}
    )


def require_cheap(precision: VariantPrecision, cost: VariantCost) -> None:
    """Refuse a variant that costs too much. Of few images, one may always change.

    Raises:
        VariantError: naming the rule and the value.
    """
    for kept, rule, got in _rules(cost):
        if not kept:
            where = f"on {cost.images:,} {cost.split} images"
            raise VariantError(f"{rule.format(precision)} {where}, got {got}: export without --{precision}")


def assignments(outputs: Outputs) -> NDArray[np.int64]:
    """Class and component of each image, (N, 2); the component is 0 for a head without."""
    classes = outputs["posterior"].argmax(1)
    components = np.zeros_like(classes)
    if "responsibilities" in outputs:
        components = outputs["responsibilities"][np.arange(len(classes)), classes].argmax(1)
    return np.stack([classes, components], 1)


def _of_density(exact: Outputs, quick: Outputs) -> dict[str, object]:
    if "log_density" not in exact:
        return {}
    density = exact["log_density"].astype(np.float64)
    shift = quick["log_density"] - density
    low, high = np.quantile(density, (0.25, 0.75))
    shifts = {share: round(float(np.quantile(shift, float(share))), 4) for share in MOST_DENSITY_SHIFT}
    return {"density_shift": shifts, "density_spread": round(float(high - low), 4)}


def _rules(cost: VariantCost) -> list[tuple[bool, str, str]]:
    """Whether each rule is kept, the rule with a place for the precision, and the value; NaN keeps none."""
    one = 1 / cost.images
    lost, least = max(MOST_ACCURACY_LOST, one), min(LEAST_AGREEMENT, 1 - one)
    of_nll, besides = MOST_NLL_GAINED
    most_nll, most_ece = cost.nll[0] * (1 + of_nll) + besides, cost.ece[0] + max(MOST_ECE_GAINED, one)
    (before, after), slack = cost.accuracy, 1e-9
    rules = [
        (before - after <= lost + slack, f"accuracy in {{}} must be within {lost:.1%} of {before:.2%}", f"{after:.2%}"),
        (cost.agreement >= least - slack, f"assignments in {{}} must agree for {least:.0%}", f"{cost.agreement:.2%}"),
        (cost.nll[1] <= most_nll, f"NLL in {{}} must be at most {most_nll:.4f} nats", f"{cost.nll[1]:.4f}"),
        (cost.ece[1] <= most_ece, f"ECE in {{}} must be at most {most_ece:.2%}", f"{cost.ece[1]:.2%}"),
    ]
    if cost.density_shift is not None and cost.density_spread is not None:
        for share, shift in cost.density_shift.items():
            most = MOST_DENSITY_SHIFT[share] * cost.density_spread
            rule = f"log-density in {{}} must shift by at most {most:.3f} nats at the {float(share):.0%} quantile"
            rules.append((abs(shift) <= most, rule, f"{shift:+.3f}"))
    return rules
