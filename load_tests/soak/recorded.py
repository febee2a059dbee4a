"""A soak as JSON: what is kept for the page, the plot and the record, few enough points to be looked at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from load_tests.soak.faults import Happened
from load_tests.soak.promises import is_calm
from load_tests.soak.site import Site
from load_tests.soak.steady_load import Failure, SteadyLoad
from load_tests.soak.trends import Line
from load_tests.soak.watch import History
from serving.bundle import graph_files

POINTS = 180  # of a process
SHOWN_PROBLEMS = 20


def figures_of(
    site: Site,
    per_second: float,
    began: float,
    load: SteadyLoad,
    faults: Sequence[Happened],
    histories: Sequence[History],
    lines: Sequence[Line],
) -> dict[str, Any]:
    """All of a soak that is worth keeping; times are in seconds from `began`."""
    manifest, precision = site.bundle.manifest, site.settings.precision
    return {
        "bundle": f"{manifest.name}:{manifest.version}",
        "precision": precision,
        "digest": manifest.sha256[graph_files(precision)[0]],
        "per_second": round(per_second, 1),
        "seconds": round(sum(window.seconds for window in load.windows), 1),
        "requests": sum(window.requests for window in load.windows),
        "outcomes": dict(sum((Counter(window.outcomes) for window in load.windows), Counter())),
        "ready_s": {fault.name: round(fault.ready_s, 2) for fault in faults if fault.ready_s is not None},
        "lines": [asdict(line) for line in lines],
        "faults": [_fault(fault) for fault in faults],
        "windows": [asdict(window) | {"calm": is_calm(window, faults)} for window in load.windows],
        "processes": [_process(history, began) for history in histories if history.times],
        "problems": _problems(load.failures),
    }


def _fault(fault: Happened) -> dict[str, Any]:
    times = {"began_s": round(fault.began_s, 2), "ended_s": round(fault.ended_s, 2)}
    return {"name": fault.name, "description": fault.description, **times}


def _process(history: History, began: float) -> dict[str, Any]:
    step = -(-len(history.times) // POINTS)
    return {
        "role": history.role,
        "pid": history.pid,
        "at_s": [round(at - began, 1) for at in history.times[::step]],
        "megabytes": [round(value, 1) for value in history.megabytes[::step]],
        "descriptors": history.descriptors[::step],
    }


def _problems(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """The commonest, with how often they came and the first time."""
    counts = Counter((one.outcome, one.kind, one.problem) for one in failures)
    first = {(one.outcome, one.kind, one.problem): one.sent_s for one in reversed(failures)}
    return [
        {
            "outcome": outcome,
            "kind": kind,
            "problem": problem,
            "requests": count,
            "first_s": first[outcome, kind, problem],
        }
        for (outcome, kind, problem), count in counts.most_common(SHOWN_PROBLEMS)
    ]
