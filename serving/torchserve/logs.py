"""What TorchServe's logs say of a failure: which worker died and of what, or why the server does not run."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

WORKERS_LOG = "model_log.log"
SERVER_LOG = "ts_log.log"
CONSOLE_LOG = "console.log"
WORKER_LINE = re.compile(r"\S+ \S+ +W-\d+-(?P<name>.+)_(?P<version>[^_]+)-std(?:out|err) - (?P<text>.*)")
DIED = "Backend worker process died."
NOT_LOADED = re.compile(r"\S+ \S+ +W-\d+-(?P<name>.+)_(?P<version>[^_ ]+) .*Load model failed: ")
WITHOUT_A_WORD = "a worker that died without a word (killed, or out of memory)"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: |$)")

Sizes = Mapping[str, int]


def sizes(logs: Path) -> Sizes:
    """How many bytes of each log there are, to tell later what is new."""
    return {file.name: file.stat().st_size for file in logs.glob("*.log")}


def failure(logs: Path, models: Collection[str], old: Sizes) -> tuple[str, str] | None:
    """The first of some models whose worker died, by what is new in TorchServe's logs, and what it died of.

    Args:
        logs: their folder.
        models: as `name:version`.
        old: how much of each log to leave out; see `sizes`.

    Returns:
        The model and the last exception that its worker printed, or None if no worker died.
    """
    lines = [match for line in _lines(logs / WORKERS_LOG, old) if (match := WORKER_LINE.match(line))]
    for index, line in enumerate(lines):
        if DIED in line["text"] and (model := _model(line)) in models:
            texts = [later["text"] for later in lines[index + 1 :] if _model(later) == model]
            return model, _last_exception(texts) or WITHOUT_A_WORD
    matches = filter(None, map(NOT_LOADED.match, _lines(logs / SERVER_LOG, old)))
    dead = next((model for model in map(_model, matches) if model in models), None)
    return (dead, WITHOUT_A_WORD) if dead else None


def last_line(logs: Path) -> str:
    """What the server said last: an exception's cause if there is one."""
    every = [line.rstrip() for name in (CONSOLE_LOG, SERVER_LOG) for line in _lines(logs / name, {})]
    lines = [line.strip() for line in every if line.strip() and not line.startswith("\tat ")]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return (causes or lines or ["nothing in its logs"])[-1]


def _model(line: re.Match[str]) -> str:
    return f"{line['name']}:{line['version']}"


def _lines(log: Path, old: Sizes) -> list[str]:
    return log.read_bytes()[old.get(log.name, 0) :].decode(errors="replace").splitlines() if log.is_file() else []


def _last_exception(texts: list[str]) -> str:
    """The message of the traceback that `texts` begins with; chained tracebacks end with the one that was raised."""
    start = None
    for index, text in enumerate(texts):
        if EXCEPTION.match(text) and not text.startswith("Traceback"):
            start = index
    return texts[start] if start is not None else ""
