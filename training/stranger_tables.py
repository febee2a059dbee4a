"""The table of how well each score of a recorded model tells strangers, as Markdown."""

from collections.abc import Iterable
from typing import Any

from training.analysis.familiarity import SCORE_NAMES
from training.marked import explained, markdown, named


def ood_table(results: dict[str, Any]) -> str:
    """How well each score of a network tells strangers; scores that no record has are left out."""
    found = [
        (named("models", name, row), strangers, scores)
        for name, row in results.get("models", {}).items()
        for strangers, scores in _scores_by_strangers(row.get("ood"))
    ]
    shown = {name: title for name, title in SCORE_NAMES.items() if any(name in scores for _, _, scores in found)}
    rows = [
        (name, strangers, *(_separation(scores.get(score)) for score in shown)) for name, strangers, scores in found
    ]
    return explained(markdown(("recipe", "strangers", *shown.values()), rows), "models", results)


def _scores_by_strangers(of: dict[str, Any] | None) -> Iterable[tuple[str, dict[str, Any]]]:
    """What strangers a record is of, in words, and their scores; one of before is of a single data set."""
    if of is None:
        return
    if "scores" in of:
        yield of["strangers"], of["scores"]
        return
    for kind, means in of["means"].items():
        sets = {name: one["scores"] for name, one in of["sets"].items() if one["kind"] == kind}
        if len(sets) == 1:
            yield f"{kind}: {next(iter(sets))}", next(iter(sets.values()))
        else:
            yield f"{kind}: {len(sets)} sets", means


def _separation(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    ends = score.get("auroc_interval")
    interval = "" if ends is None else f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]"
    return f"{100 * score['auroc']:.1f}{interval} ({100 * score['fpr_at_95_tpr']:.0f})"
