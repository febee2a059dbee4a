"""Rounds that were measured, so that a run that was killed goes on: a JSON file a dimension, until the run is whole.

kept = Kept(Path("data/growth"), "cores", {"bundle": digest, "seconds": 3})
kept.add(readings); kept.rounds; kept.forget()
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load_tests.growth.curve import Reading
from training.files import replace_text


class Kept:
    """The rounds of one dimension.

    Attributes:
        rounds: those that there are.

    Args:
        folder: of all of them; made if missing.
        dimension: whose.
        of: what was measured, and where; rounds of anything else are not gone on with.
    """

    def __init__(self, folder: Path, dimension: str, of: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{dimension}-{key}.json"
        self.rounds: list[list[Reading]] = []
        if self._file.is_file():
            self.rounds = [[Reading(**one) for one in readings] for readings in json.loads(self._file.read_bytes())]

    def add(self, readings: Sequence[Reading]) -> None:
        """Keep a round."""
        self.rounds.append(list(readings))
        replace_text(self._file, json.dumps([[asdict(one) for one in readings] for readings in self.rounds]))

    def forget(self) -> None:
        """The run is whole: the next one begins anew."""
        self._file.unlink(missing_ok=True)
