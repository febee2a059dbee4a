"""What has changed between two measurements of the same, beyond noise.

    change = judge(("serving", "p99_ms"), Figure(21, rounds=(20, 21, 23)), Figure(34, rounds=(33, 34, 36)), noise=0.1)
    change.verdict    # worse

The noise of a figure that was measured in three rounds or more is how far its rounds lie apart: the widths of both
ranges, or half of them where both have five rounds or more. Where nothing has changed, 14 in 1,000 figures of three
rounds, and 10 of five, differ by more than that. But another run on the same machine differs by some percent whatever
its rounds say. Where there are no rounds, it is the interval that the file states, or a share of the figure.
"""

import re
from dataclasses import dataclass
from typing import Literal

from load_tests.compare.measured import Figure, Path

Verdict = Literal["better", "worse", "same", "differs"]

FEW, MANY = 3, 5  # rounds
BETWEEN_RUNS = 0.03  # of a figure, that runs differ by beyond their rounds
OF_SHARES = 0.01  # of an accuracy, if nothing else is said
SHARES = re.compile(r"accuracy|auroc")
NEUTRAL = re.compile(
    r"^(.*_)?(offered|asked)(_per_second)?$|^breaks_at|generator|sent_late|^least_|^most_|^image_bytes$"
)
MORE = re.compile(r"per_second$|^ratio(_of_both)?$|accuracy|auroc|agreement|^adjusted_rand")
LESS = re.compile(
    r"_ms$|(^|_)(mb|megabytes|memory)(_|$)|_bytes$|seconds_to_|^ready_s$|failed$|failures$|overdue$|descriptors$"
    r"|^(nll|brier|ece.*|e?_?aurc)$|^fpr"
)


@dataclass(frozen=True)
class Change:
    """A figure, before and after.

    Attributes:
        path: its name.
        old: before.
        new: after.
        noise: that it has to exceed.
        verdict: `differs` if it is not known which is better.
    """

    path: Path
    old: Figure
    new: Figure
    noise: float
    verdict: Verdict


def more_is_better(path: Path, figure: Figure) -> bool | None:
    """Whether a figure is better if it is more, by what the file says or by its name; None if neither is known."""
    if figure.more_is_better is not None:
        return figure.more_is_better
    name = path[-1]
    if NEUTRAL.search(name):
        return None
    if LESS.search(name) or (name == "median" and figure.more_is_better is False):
        return False
    return True if MORE.search(name) else None


def noise_of(path: Path, old: Figure, new: Figure, share: float) -> float:
    """How far apart both may be without that anything has changed."""
    larger = max(abs(old.value), abs(new.value))
    fewest = min(len(old.rounds), len(new.rounds))
    if fewest >= FEW:
        widths = sum(max(one.rounds) - min(one.rounds) for one in (old, new))
        return max(widths / 2 if fewest >= MANY else widths, BETWEEN_RUNS * larger)
    if old.interval and new.interval:
        return sum(one[1] - one[0] for one in (old.interval, new.interval)) / 2
    return (OF_SHARES if SHARES.search(path[-1]) else share) * larger


def judge(path: Path, old: Figure, new: Figure, share: float) -> Change:
    """Compare one figure."""
    allowed, better_up = noise_of(path, old, new, share), more_is_better(path, new)
    verdict: Verdict
    if abs(new.value - old.value) <= allowed:
        verdict = "same"
    elif better_up is None:
        verdict = "differs"
    else:
        verdict = "better" if (new.value > old.value) == better_up else "worse"
    return Change(path, old, new, allowed, verdict)
