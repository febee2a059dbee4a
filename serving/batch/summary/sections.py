"""What a page says: its sections, from a table's figures and the thumbnails of its images."""

from collections.abc import Sequence

from serving.batch.summary.figures import AmongHeldOut, Confidence, Figures, Typicality
from serving.batch.summary.images import Thumbnails
from serving.batch.summary.occupancy import NOTABLE, TOO_FEW, ClassOccupancy, rank
from serving.batch.summary.page import Card, Drawing, Rows, Section
from serving.batch.summary.plots import (
    DARK,
    LIGHT,
    Chart,
    as_uri,
    confidence_chart,
    density_chart,
    occupancy_chart,
)
from serving.batch.summary.tally import Listed
from serving.bundle import Manifest
from serving.page import percent

MOST_ROWS = 50  # classes in a table
MOST_BARS = 20  # classes in a chart
MOST_NAMED = 20  # classes in a sentence
MOST_CHARACTERS = 300  # of a key or message


def sections_of(figures: Figures, manifest: Manifest, seen: Thumbnails) -> list[Section]:
    """The sections of a table, in order.

    Args:
        figures: its own.
        manifest: of the bundle that made it.
        seen: the images of its two lists, or why they cannot be shown.
    """
    sections = [scored_section(figures)]
    if figures.confidence is not None:
        sections += [
            classes_section(figures),
            confidence_section(figures.confidence),
            *([] if figures.typicality is None else [typicality_section(figures.typicality)]),
            density_section(figures, manifest),
            components_section(figures.occupancy, manifest),
        ]
    if figures.least_typical:
        text = "The images of the lowest log-density, the lowest first: look here for what the model has not learned."
        sections.append(_listed("atypical", "Least typical images", text, figures.least_typical, seen))
    if figures.closest_to_a_tie:
        sections.append(_listed("ties", "Closest to a tie", _ties_text(figures), figures.closest_to_a_tie, seen))
    return sections


def scored_section(figures: Figures) -> Section:
    """What was scored, by what, and what got no answer."""
    facts = [
        ["table", figures.table],
        ["images", f"{figures.rows:,}"],
        ["with an answer", f"{figures.answered:,}"],
        ["without", f"{figures.rows - figures.answered:,}"],
        ["model", f"{figures.model}, version {figures.version}"],
        ["bundle digest", figures.bundle_digest],
    ]
    tables = [Rows("The table", [], facts)]
    if figures.errors:
        tables.append(_errors(figures))
    text = []
    if figures.missing_parts:
        text.append(f"The job is not finished: {figures.missing_parts:,} parts of the table are missing.")
    if not figures.answered:
        text.append("No image has an answer, so there is nothing more to show.")
    return Section("scored", "What was scored", text, tables=tables)


def _errors(figures: Figures) -> Rows:
    rows: list[list[str | float]] = [
        [
            error.code,
            f"{error.images:,}",
            error.images / figures.rows,
            " · ".join(f"{_cut(key)}: {_cut(message)}" for key, message in error.examples),
        ]
        for error in figures.errors
    ]
    return Rows("Images without an answer", ["code", "images", "share", "for example"], rows, wide=True)


def classes_section(figures: Figures) -> Section:
    """How many images were taken for each class."""
    ranked = sorted((one for one in figures.classes if one.images), key=lambda one: -one.images)
    rows: list[list[str | float]] = [
        [one.label, f"{one.images:,}", one.share, f"{one.mean_probability:.3f}"] for one in ranked[:MOST_ROWS]
    ]
    text = [
        "What the images were taken for, the most frequent class first. The mix is yours: that of the images that the "
        "model was tested on says nothing about it, so they are not compared."
    ]
    if empty := [one.label for one in figures.classes if not one.images]:
        text.append(f"{len(empty)} of {len(figures.classes)} classes have no image{_named(empty)}.")
    if len(ranked) > MOST_ROWS:
        text.append(f"Of {len(ranked)} classes with images, the {MOST_ROWS} most frequent are shown.")
    header = ["class", "images", "share", "mean probability"]
    return Section("classes", "Classes", text, tables=[Rows("Images per class", header, rows)])


def _named(labels: Sequence[str]) -> str:
    return f": {', '.join(labels)}" if len(labels) <= MOST_NAMED else ""


def confidence_section(confidence: Confidence) -> Section:
    """The probabilities of the likeliest classes."""
    parts = [f"{percent(share)} of the images are below {bound}" for bound, share in confidence.below.items()]
    text = [
        f"The mean probability of the likeliest class is {confidence.mean:.3f}; {' and '.join(parts)}. On images like "
        "those that it was tested on, a calibrated model is right about as often as the mean says."
    ]
    alt = f"Histogram of the probability; {', '.join(parts)}."
    return Section(
        "confidence", "Confidence", text, [_drawn(confidence_chart(confidence), "Images by probability.", alt)]
    )


def typicality_section(typicality: AmongHeldOut) -> Section:
    """How typical the images are among those that were held out from the training."""
    expected = percent(typicality.expected)
    text = (
        "The typicality of an image is the share of the held-out images, which the model has not learned from, that "
        f"are no more typical. {percent(typicality.atypical)} of the images are below {typicality.expected:g} and "
        f"called atypical; of images like the held-out ones at most {expected} are, and each tenth below holds 10 %."
    )
    rows: list[list[str | float]] = [
        [f"{n / 10:g} to {(n + 1) / 10:g}", share] for n, share in enumerate(typicality.tenths)
    ]
    table = Rows("Share of images by typicality", ["typicality", "of these images"], rows)
    return Section("typicality", "Typicality", [text], tables=[table])


def density_section(figures: Figures, manifest: Manifest) -> Section:
    """How typical the images are of those that the model was tested on."""
    title, density = "Density", figures.density
    if density is None:
        rest = ", so it cannot say how typical an image is" if figures.typicality is None else ""
        return Section("density", title, [f"{manifest.name} has no density{rest}."])
    split = "" if density.split_mean is None else f", on the test split {density.split_mean:.2f}"
    mean = f"The mean log-density is {density.mean:.2f} nats{split}."
    typicality = density.typicality
    if typicality is None:
        advice = f"{mean} The bundle has no quantiles of its test split to compare with: export it anew to have them."
        return Section("density", title, [advice])
    caption = "Images by log-density. Dashed: quantiles of the test split."
    beyond = typicality.histogram.beyond_left + typicality.histogram.beyond_right
    if beyond:
        caption += f" The outermost bars also hold what lies further out, {beyond:,} of the images."
    alt = f"Histogram of the log-density around {density.mean:.1f} nats; {percent(typicality.atypical)} are atypical."
    drawing = _drawn(density_chart(typicality), caption, alt)
    text = [f"{_atypical_text(typicality)} {mean}", *_precision_text(figures.precision, manifest)]
    return Section("density", title, text, [drawing], [_quantiles(typicality)])


def _quantiles(typicality: Typicality) -> Rows:
    rows: list[list[str | float]] = [
        [f"{100 * one.share:g} %", f"{one.log_density:.2f}", one.found] for one in typicality.quantiles
    ]
    header = ["of the test split", "is below, nats", "of these images"]
    return Rows("Share of images below the quantiles of the test split", header, rows)


def components_section(occupancy: list[ClassOccupancy] | None, manifest: Manifest) -> Section:
    """How the images of each class fall on its components, against the test split."""
    title = "Components"
    if manifest.head.components == 1:
        text = f"{manifest.name} has one component a class or none, so there is no share of components to compare."
        return Section("components", title, [text])
    if occupancy is None:
        text = (
            "The bundle has no shares of its components on the test split to compare with: export it anew to have them."
        )
        return Section("components", title, [text])
    ranked = sorted(occupancy, key=rank)
    shown = occupancy if len(occupancy) <= MOST_BARS else ranked[:MOST_BARS]
    caption = "Shares of the components of a class: above and pale on the test split, below and full in this table."
    if len(shown) < len(occupancy):
        caption += f" The {len(shown)} classes that differ most."
    alt = f"Bars of {len(shown)} classes, split into components."
    drawing = _drawn(occupancy_chart(shown), caption, alt)
    return Section("components", title, _components_text(occupancy), [drawing], [_effects(ranked[:MOST_ROWS])])


def _components_text(occupancy: Sequence[ClassOccupancy]) -> list[str]:
    differing = [one for one in occupancy if one.effect in NOTABLE]
    unknown = sum(one.effect == TOO_FEW for one in occupancy)
    found = f"{len(differing)} of {len(occupancy)} classes differ by a medium effect or more"
    return [
        f"A component is a kind of image within a class. {found}"
        + (f"; {unknown} have too few images to tell." if unknown else "."),
        "The effect size is Cohen's w, the root of the sum of (p - q)² / q over the components, where p is a share "
        "here and q on the test split: 0.1 is a small effect, 0.3 a medium and 0.5 a large one (Cohen, Statistical "
        "Power Analysis for the Behavioral Sciences, 1988). Where nothing has changed, about one class in twenty "
        "exceeds what stands under “by chance”. The test split is counted by its true classes, the table by those "
        "that were found.",
    ]


def _effects(occupancy: Sequence[ClassOccupancy]) -> Rows:
    rows = [
        [
            one.label,
            f"{one.images:,}",
            "" if one.cohens_w is None else f"{one.cohens_w:.2f}",
            "" if one.by_chance is None else f"{one.by_chance:.2f}",
            one.effect,
        ]
        for one in occupancy
    ]
    header = ["class", "images", "Cohen's w", "by chance, up to", "effect"]
    return Rows("How far the components differ from the test split, the most first", header, rows)


def _atypical_text(typicality: Typicality) -> str:
    expected = percent(typicality.expected)
    return (
        f"The share of atypical images is {percent(typicality.atypical)}, where {expected} is expected: those below "
        "the 1 % quantile of the test split's log-density, unlike what the model has learned. "
        f"{percent(typicality.above)} are above the 99 % quantile, where {expected} is expected too: closer to what "
        "it has learned than nearly all that it was tested on."
    )


def _precision_text(precision: str, manifest: Manifest) -> list[str]:
    """How a variant's densities differ from those of the float32 graph, which the quantiles are of."""
    cost = next((variant for name, variant in manifest.variants.items() if name == precision), None)
    if cost is None or cost.test is None or not cost.test.density_shift:
        return []
    shifts = ", ".join(f"{value:+.2f} at {100 * float(share):g} %" for share, value in cost.test.density_shift.items())
    return [
        f"The images were scored in {precision}, the quantiles are of the float32 graph. On the test split {precision} "
        f"shifts the log-density by these nats, quantiles by their shares: {shifts}."
    ]


def _ties_text(figures: Figures) -> str:
    if figures.by_margin:
        return "The images whose two likeliest classes are closest to each other, the closest first."
    return (
        "The images whose likeliest class has the lowest probability, the lowest first. A table of “score --top-k 2” "
        "has the second class too, and then it is their margin that counts."
    )


def _listed(anchor: str, title: str, text: str, rows: Sequence[Listed], seen: Thumbnails) -> Section:
    if seen.reason is None:
        cards = [
            Card(_cut(row.key), seen.images.get(row.key), _cut(seen.missing.get(row.key, "")), _facts(row))
            for row in rows
        ]
        return Section(anchor, title, [text], cards=cards)
    header = ["key", "label", "probability", "margin", "component", "log-density"]
    table = [
        [
            _cut(row.key),
            row.label,
            f"{row.probability:.3f}",
            "" if row.margin is None else f"{row.margin:.3f}",
            "" if row.component is None else str(row.component),
            "" if row.log_density is None else f"{row.log_density:.2f}",
        ]
        for row in rows
    ]
    return Section(
        anchor, title, [text, f"No images are shown: {seen.reason}."], tables=[Rows(title, header, table, wide=True)]
    )


def _facts(row: Listed) -> list[str]:
    facts = [f"{row.label} {row.probability:.3f}"]
    if row.margin is not None:
        facts.append(f"margin {row.margin:.3f}")
    if row.component is not None:
        facts.append(f"component {row.component}")
    if row.log_density is not None:
        facts.append(f"log-density {row.log_density:.2f}")
    return facts


def _drawn(chart: Chart, caption: str, alt: str) -> Drawing:
    light, width, height = as_uri(chart, LIGHT)
    return Drawing(light, as_uri(chart, DARK)[0], width, height, caption, alt)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
