"""What a report says of how the network meets strangers."""

from typing import Any

from training.analysis.familiarity import SCORE_NAMES
from training.report import plots
from training.report.page import Picture, Section, Table

Figures = dict[str, Any]


def strangers_section(ood: Figures) -> Section:
    """How well each score tells each set of strangers, in tables like OpenOOD's.

    Args:
        ood: as `ood.ood_of` gives it.
    """
    text = [
        f"The network has learned {ood['known']}; its {ood['known_images']:,} test images are mixed with those of "
        "something else. Near strangers are of other classes but the same kind; the others are far. AUROC is the "
        "probability that a familiar image scores above a strange one; FPR at 95 % TPR the share of strangers accepted "
        "where 95 % of the familiar images are.",
        *(f"No {SCORE_NAMES[name]}: {reason}." for name, reason in ood["omitted"].items()),
        *(f"Not measured with {name}: {reason}." for name, reason in ood["missing"].items()),
    ]
    rows = [_mean_row(name, ood["means"]) for name in next(iter(ood["means"].values()))]
    header = ["score", *(f"{kind}: {title}" for kind in ood["means"] for title in ("AUROC", "FPR at 95 % TPR"))]
    tables = [Table("Scores of familiarity, means over the sets", header, rows), _auroc_of_sets(ood["sets"])]
    alt = "; ".join(f"{row[0]}: {', '.join(row[1:])}" for row in rows)
    picture = Picture("strangers", "How well each score tells strangers.", alt, plots.ood_bars(ood), wide=True)
    return Section("strangers", "Telling strangers", text, tables, [picture])


def _mean_row(name: str, means: Figures) -> list[str]:
    figures = [of_kind[name] for of_kind in means.values()]
    return [SCORE_NAMES[name], *(f"{one[key]:.2%}" for one in figures for key in ("auroc", "fpr_at_95_tpr"))]


def _auroc_of_sets(sets: Figures) -> Table:
    """The last score, which is served, with its interval; the others, which are there to compare, without."""
    *others, served = next(iter(sets.values()))["scores"]
    is_flagged = any(one["flagged"] is not None for one in sets.values())
    rows = []
    for name, one in sets.items():
        cells = [f"{100 * one['scores'][score]['auroc']:.1f}" for score in others]
        flagged = [f"{one['flagged']:.1%}"] if is_flagged else []
        rows.append([f"{name} ({one['kind']}, {one['images']:,})", *cells, _auroc(one["scores"][served]), *flagged])
    header = ["strangers", *(SCORE_NAMES[score] for score in (*others, served)), *(["atypical"] if is_flagged else [])]
    return Table(f"AUROC in % of each set; {SCORE_NAMES[served]} [95 % interval]", header, rows)


def _auroc(score: Figures) -> str:
    auroc = f"{100 * score['auroc']:.1f}"
    if score["auroc_interval"] is None:
        return auroc
    low, high = score["auroc_interval"]
    return f"{auroc} [{100 * low:.1f}, {100 * high:.1f}]"
