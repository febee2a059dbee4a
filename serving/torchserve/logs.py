"""What TorchServe's logs say of a failure: which worker died and of what, or why the server does not run."""

import re
from collections.abc import Mapping
from pathlib import Path

WORKERS_LOG = "model_log.log"
SERVER_LOG = "ts_log.log"
CONSOLE_LOG = "console.log"
WORKER_LINE = re.compile(r"\S+ \S+ +W-\d+-(?P<model>.+)_[^_]+-std(?:out|err) - (?P<text>.*)")
DIED = "Backend worker process died."
NOT_LOADED = re.compile(r"Load model failed: (?P<model>.+), error: ")
WITHOUT_A_WORD = "a worker that died without a word (killed, or out of memory)"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: |$)")

Sizes = Mapping[str, int]


def sizes(logs: Path) -> Sizes:
    """How many bytes of each log there are, to tell later what is new."""
    return {file.name: file.stat().st_size for file in logs.glob("*.log")}


def failure(logs: Path, old: Sizes) -> tuple[str, str] | None:
    """The first model whose worker died, by what is new in TorchServe's logs, and the last exception that it printed.

    Args:
        logs: their folder.
        old: how much of each log to leave out; see `sizes`.

    Returns:
        The model's name and the reason, or None if no worker died.
    """
    lines = [match for line in _lines(logs / WORKERS_LOG, old) if (match := WORKER_LINE.match(line))]
    for index, line in enumerate(lines):
        if DIED in line["text"]:
            texts = [later["text"] for later in lines[index + 1 :] if later["model"] == line["model"]]
            return line["model"], _last_exception(texts) or WITHOUT_A_WORD
    match = next(filter(None, map(NOT_LOADED.search, _lines(logs / SERVER_LOG, old))), None)
    return (match["model"], WITHOUT_A_WORD) if match else None


def last_line(logs: Path) -> str:
    """What the server said last: an exception's cause if there is one."""
    every = [line.rstrip() for name in (CONSOLE_LOG, SERVER_LOG) for line in _lines(logs / name, {})]
    lines = [line.strip() for line in every if line.strip() and not line.startswith("\tat ")]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return (causes or lines or ["nothing in its logs"])[-1]


def _lines(log: Path, old: Sizes) -> list[str]:
    return log.read_bytes()[old.get(log.name, 0) :].decode(errors="replace").splitlines() if log.is_file() else []


def _last_exception(texts: list[str]) -> str:
    """The message of the traceback that `texts` begins with; chained tracebacks end with the one that was raised."""
    start = None
    for index, text in enumerate(texts):
        if EXCEPTION.match(text) and not text.startswith("Traceback"):
            start = index
    return texts[start] if start is not None else ""
