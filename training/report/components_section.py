"""The section of a report on mixture components: how they are used, whether a refit finds them anew, what they show."""

from collections.abc import Sequence
from typing import Any

from training.analysis.evidence import Evidence
from training.component_names import ComponentNames
from training.report import feature_plots, plots
from training.report.galleries import component_means, component_members
from training.report.page import Picture, Section, Table

SEVERAL = 20  # classes; of more, tables name only some

Figures = dict[str, Any]


def components_section(evidence: Evidence, figures: Figures, *, images: bool) -> Section | None:
    """Occupancy, repeatability, stability, widths and BIC of mixture components; None for one component a class."""
    components, classes = figures["components"], evidence.dataset.classes
    mixtures = feature_plots.gaussians_of(evidence.classifier.head)
    if components is None or mixtures is None:
        return None
    pictures = [
        _occupancy(components, classes),
        _scales(mixtures, classes),
        _bic(components),
        component_means(evidence),
    ]
    if images:
        pictures.append(component_members(evidence, figures["component_names"]))
    text, tables = _component_text(components), _component_tables(components, classes)
    if named := figures["component_names"]:
        tables.append(_component_names(named, components["components"]))
    return Section("components", "What the components are", text, tables, pictures)


def _occupancy(components: Figures, classes: Sequence[str]) -> Picture:
    refitted = components.get("refit")
    variants = {"as trained, by gradient" if refitted else "test images": components["test"]["occupancy"]}
    if refitted:
        variants["refitted by EM"] = refitted["occupancy"]
    caption = "Share of each class's test images that each component takes."
    evenness = components["test"]["mean_normalised_entropy"]
    alt = f"Shares per class and component; mean normalised entropy {evenness:.2f}."
    figure = feature_plots.occupancy_bars(variants, classes)
    return Picture("occupancy", caption, alt, figure, wide=bool(refitted) or len(classes) > SEVERAL)


def _scales(mixtures: feature_plots.GaussianMixtures, classes: Sequence[str]) -> Picture:
    width = feature_plots.widths(mixtures)
    alt = f"Weights, and standard deviations from {width.min():.3g} to {width.max():.3g}, per component."
    caption = "Weights of the components, and their standard deviation: the geometric mean over all directions."
    return Picture("scales", caption, alt, feature_plots.component_scales(mixtures, classes), wide=True)


def _bic(components: Figures) -> Picture:
    least, most = components["bic"]["least"], components["bic"]["components"][-1]
    prefers = f"{least} or more a class; {most} are the most that were tried" if least == most else f"{least} a class"
    caption = f"Refits with more and fewer components: the Bayesian information criterion prefers {prefers}."
    figure = plots.bic_curve(components["bic"], components["components"])
    return Picture("bic", caption, f"Curve of the criterion, least at {least} components.", figure)


def _component_text(components: Figures) -> list[str]:
    test, repeatability, stability = components["test"], components["repeatability"], components["stability"]
    way = "by gradient" if components["fitted_by"] == "gradient" else "by EM on frozen features"
    text = [
        f"Each class has {components['components']} components, fitted {way}. The entropy of their shares of the "
        f"class's test images, over its largest possible value, is {test['mean_normalised_entropy']:.2f} in the mean "
        "of the classes: 1 if all are used alike, 0 if one takes every image.",
        f"How alike refits on {components['images']:,} training images share out those of a class, by the adjusted "
        "Rand index (1 is the same groups, 0 what chance would give): repeatability over "
        f"{len(repeatability['seeds'])} starts of the EM {repeatability['adjusted_rand']:.2f}, stability over "
        f"{stability['bootstrap_samples']} bootstrap samples of the images {stability['adjusted_rand']:.2f}.",
    ]
    if "calibration" in components:
        text.append(component_calibration(components["calibration"]))
    if refitted := components.get("refit"):
        text.append(
            "Components trained by gradient may collapse until one takes every image. The same features, refitted by "
            f"EM, give an entropy of {refitted['mean_normalised_entropy']:.2f} and an accuracy of "
            f"{refitted['accuracy']:.2%} instead of {refitted['accuracy_as_trained']:.2%}."
        )
    return text


def component_calibration(calibration: Figures) -> str:
    """What the temperature of responsibilities makes of a component's probability, in words."""
    text = (
        "The probability of a component is the chance that a fit to other images of the same kind would put the image "
        f"into it too, at T = {calibration['temperature']:.4g}: {calibration['why']}."
    )
    if "before" in calibration:
        before, after = (calibration[name]["sure"] for name in ("before", "after"))
        text += f" At T = 1 it is above 0.999 for {before:.0%} of these images, as served for {after:.0%}."
    return text


def _component_names(named: ComponentNames, components: int) -> Table:
    rows = [[name, *(of_class.get(k, "") for k in range(components))] for name, of_class in named.items()]
    header = ["class", *(f"component {k}" for k in range(components))]
    return Table("What their images show, named by someone who looked at them", header, rows)


def _component_tables(components: Figures, classes: Sequence[str]) -> list[Table]:
    if len(classes) > SEVERAL:
        return []
    test, keys = components["test"], ("repeatability", "stability")
    starts, samples = (components[key]["adjusted_rand_per_class"] for key in keys)
    rows = [
        [name, *(f"{share:.1%}" for share in test["occupancy"][c]), f"{test['entropy'][c]:.3f}",
         f"{test['normalised_entropy'][c]:.2f}", f"{starts[c]:.2f}", f"{samples[c]:.2f}"]
        for c, name in enumerate(classes)
    ]  # fmt: skip
    header = ["class", *(f"component {k}" for k in range(components["components"]))]
    header += ["entropy, nats", "over log K", *keys]
    return [Table("Shares of the test images per component", header, rows)]
