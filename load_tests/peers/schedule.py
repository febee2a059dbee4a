"""In which order servers are visited, and what is kept of the visits, so that an interrupted run can go on.

Ours comes first, after every second peer and last in each round, so that every peer stands beside one of ours; every
other round goes the other way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.peers.visit import OPEN_LOOP_TIMES, WARM_UP_S
from training.files import replace_text

OURS = "ours"
BETWEEN = 2  # peers between two visits of ours
START_AND_END_S = 12.0  # of a server, about


@dataclass(frozen=True)
class Turn:
    """A visit that is to be made.

    Attributes:
        round: from 0.
        place: in the round, from 0.
        peer: name.
    """

    round: int
    place: int
    peer: str


def turns(peers: Sequence[str], rounds: int) -> list[Turn]:
    """All visits, in order."""
    found = []
    for number in range(rounds):
        others = [name for name in (peers if number % 2 == 0 else reversed(peers)) if name != OURS]
        order = [OURS]
        for start in range(0, len(others), BETWEEN):
            order += [*others[start : start + BETWEEN], OURS]
        found += [Turn(number, place, name) for place, name in enumerate(order)]
    return found


def estimated_minutes(schedule: Sequence[Turn], connections: int, seconds: float) -> float:
    """How long it takes, about."""
    of_peers = sum(turn.peer != OURS for turn in schedule)
    each = START_AND_END_S + WARM_UP_S + (connections + OPEN_LOOP_TIMES) * seconds
    return (len(schedule) * each + of_peers * OPEN_LOOP_TIMES * seconds) / 60


class Kept:
    """The visits that were made, in a JSON file that is written after each."""

    def __init__(self, file: Path, settings: dict[str, Any], resume: bool) -> None:
        """Begin, or go on.

        Args:
            file: its folder is made if missing.
            settings: of the run.
            resume: whether what is there is kept; visits that failed are made again.

        Raises:
            ValueError: if what is there is of other settings.
        """
        self.visits: list[dict[str, Any]] = []
        self._file, self._settings = file, settings
        if resume and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["settings"] != settings:
                raise ValueError(f"--resume must go on with a run of the same settings, got {found['settings']}")
            self.visits = [visit for visit in found["visits"] if "error" not in visit]

    def holds(self, turn: Turn) -> bool:
        """Whether this visit was made."""
        return any((visit["round"], visit["place"]) == (turn.round, turn.place) for visit in self.visits)

    def add(self, turn: Turn, found: dict[str, Any]) -> None:
        """Keep what a visit has found."""
        self.visits.append({"round": turn.round, "place": turn.place, "peer": turn.peer, **found})
        self.visits.sort(key=lambda visit: (visit["round"], visit["place"]))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self._file, json.dumps({"settings": self._settings, "visits": self.visits}, indent=1) + "\n")

    def rates_for_ours(self, turn: Turn) -> dict[str, float]:
        """At which rates ours is asked besides its own: those of the peers since ours was visited last."""
        rates: dict[str, float] = {}
        for visit in self.visits:
            if visit["round"] == turn.round and visit["place"] < turn.place and "error" not in visit:
                if visit["peer"] == OURS:
                    rates = {}
                else:
                    rates[visit["peer"]] = visit["open"][visit["peer"]]["offered"]
        return rates
