"""What a load by locust ends with: figures and objectives in print, all of it in JSON, an exit code."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from load_tests.users.figures import Figures, figures_of
from load_tests.users.mix import Mix
from load_tests.users.shapes import SECONDS
from load_tests.users.slos import Verdict, judge, read_slos
from training.files import replace_text


def finish(environment: Any, mix: Mix) -> int:
    """Print and write what came of a load, and say with which exit code it ends.

    Returns:
        0; 1 if an objective is broken, nothing was asked, or the load test itself had an error.
    """
    options, stats = environment.parsed_options, environment.stats
    total = figures_of(stats.total)
    by_name = {entry.name: figures_of(entry) for _, entry in sorted(stats.entries.items())}
    verdicts = judge(read_slos(Path(options.slo)), total, by_name)
    print(_line(total), *(verdict.text for verdict in verdicts), sep="\n")
    if options.summary:
        file = Path(options.summary)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(_summary(environment, mix, total, by_name, verdicts), indent=2) + "\n")
    broken = any(verdict.held is False for verdict in verdicts)
    return int(broken or not total.count or bool(environment.runner.exceptions))


def _line(total: Figures) -> str:
    return (
        f"\n{total.count:,} requests, {total.requests_per_second:,.1f} right answers/s, p50 {total.p50_ms:.3g} ms, "
        f"p95 {total.p95_ms:.3g} ms, p99 {total.p99_ms:.3g} ms, {total.failed} failures ({total.error_rate:.2%})"
    )


def _summary(
    environment: Any, mix: Mix, total: Figures, by_name: Mapping[str, Figures], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    from training.machine import stamp  # which imports torch

    options, stats = environment.parsed_options, environment.stats
    return {
        **stamp(),
        "shape": options.shape,
        "users": options.num_users,
        "seconds": options.run_time or SECONDS[options.shape],
        "seconds_measured": round((stats.last_request_timestamp or 0) - stats.start_time, 2) if total.count else 0,
        "load_processes": getattr(environment, "load_processes", 0),
        "host": environment.host,
        "mix": mix.model_dump(),
        "tolerance": options.tolerance,
        "objectives": [{"text": verdict.text, "held": verdict.held} for verdict in verdicts],
        "total": total.as_json(),
        "kinds": {name: figures.as_json() for name, figures in by_name.items()},
        "failures": [
            {"kind": error.name, "reason": str(error.error), "count": error.occurrences}
            for error in stats.errors.values()
        ],
        "over_time": [_moment(row) for row in stats.history],
    }


def _moment(row: Mapping[str, Any]) -> dict[str, Any]:
    """A point of locust's charts; its latencies are of the ten seconds before."""
    names = {
        "users": "user_count",
        "requests_per_second": "current_rps",
        "failures_per_second": "current_fail_per_sec",
        "p50_ms": "response_time_percentile_0.5",
        "p99_ms": "response_time_percentile_0.99",
    }
    return {"time": row["time"], **{name: row[key][1] for name, key in names.items()}}
