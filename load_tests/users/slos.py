"""Service level objectives: what a load must have held, from a TOML file (`slo.toml` is one), and whether it did.

for verdict in judge(read_slos(Path("load_tests/slo.toml")), total, by_name):
    print(verdict.text)  # p99 of PNG must be at most 100 ms, got 43 ms: held
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from load_tests.asked.kinds import Kind
from load_tests.users.figures import Figures
from load_tests.users.mix import FileError, read_toml
from training.schema import TomlSection, problems

DEFAULT_SLOS = Path(__file__).parents[1] / "slo.toml"

Milliseconds = Annotated[float, Field(gt=0)]


class Targets(TomlSection):
    """What must hold of some requests; latencies are of all answers, requests_per_second of the right ones."""

    error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    p50_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None


_FIELDS: Any = {name: (Targets, Targets()) for name in ("all", *Kind.__members__)}
Slos: Any = create_model("Slos", __base__=TomlSection, **_FIELDS)


@dataclass(frozen=True)
class Verdict:
    """An objective, what was measured, and whether that holds it; None if nothing was measured."""

    text: str
    held: bool | None


def read_slos(file: Path = DEFAULT_SLOS) -> Any:
    """Read objectives.

    Raises:
        FileError: naming file, key, rule and value.
    """
    try:
        return Slos.model_validate(read_toml(file, "--slo"))
    except ValidationError as exc:
        raise FileError(f"{file}: {problems(exc, Slos)}") from exc


def judge(slos: Any, total: Figures, by_name: Mapping[str, Figures]) -> list[Verdict]:
    """Every objective against what was measured.

    Args:
        slos: of `read_slos`.
        total: of all requests.
        by_name: of the requests of a kind, by its words, or by `words (model)` where there are several models.
    """
    verdicts = list(_judged(slos.all, "all requests", total))
    for kind in Kind:
        targets = getattr(slos, kind.name)
        names = [name for name in by_name if name == kind or name.startswith(f"{kind} (")]
        for name in names or [kind.value]:
            verdicts += _judged(targets, name, by_name.get(name))
    return verdicts


def _judged(targets: Targets, what: str, got: Figures | None) -> Iterator[Verdict]:
    for name, bound in targets.model_dump(exclude_none=True).items():
        rule = f"{_subject(name, what)} must be at {'least' if name == 'requests_per_second' else 'most'}"
        if got is None or not got.count:
            yield Verdict(f"{rule} {_shown(name, bound)}, got no request: not judged", None)
            continue
        value = getattr(got, name)
        held = value >= bound if name == "requests_per_second" else value <= bound
        yield Verdict(f"{rule} {_shown(name, bound)}, got {_shown(name, value)}: {'held' if held else 'broken'}", held)


def _subject(name: str, what: str) -> str:
    words = {"error_rate": "error rate", "requests_per_second": "right answers a second"}
    return f"{words.get(name, name.removesuffix('_ms'))} of {what}"


def _shown(name: str, value: float) -> str:
    if name == "error_rate":
        return f"{100 * value:.3g} %"
    number = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return number if name == "requests_per_second" else f"{number} ms"
