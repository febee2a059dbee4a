"""What the users of a load send, made once and in a form that a master can send to its workers.

    deck = make_deck(url, read_mix(), tolerance=1e-4)  # on the master, of an idle server
    asks = unpack(pack(deck))                          # on a worker

The master alone asks the server before the load, so no worker's load disturbs what another one learns, and a worker
needs neither photos nor a server that is idle when it joins.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from load_tests.asked.asks import Ask
from load_tests.asked.kinds import Kind, Known, Question, as_ask, learn, questions, shuffled
from load_tests.users.mix import Mix


@dataclass(frozen=True)
class Deck:
    """Requests with their right answers.

    Attributes:
        cards: each once, by the name that its figures get.
        order: which follows which.
        tolerance: of probabilities.
    """

    cards: list[tuple[str, Known]]
    order: list[int]
    tolerance: float

    def asks(self) -> list[Ask]:
        """In their order."""
        asks = [replace(as_ask(known, self.tolerance), kind=name) for name, known in self.cards]
        return [asks[place] for place in self.order]


def make_deck(url: str, mix: Mix, tolerance: float, seed: int = 0) -> Deck:
    """Learn the right answers from an idle server.

    Raises:
        WrongAlone: if it does not answer, or wrongly.
    """
    models = {model: weight for model, weight in mix.models.items() if weight}
    cards: list[tuple[str, Known]] = []
    order: list[int] = []
    for model, weight in models.items():
        known = learn(url, questions(model, [Kind[name] for name in mix.weights]))
        places = {id(one): len(cards) + place for place, one in enumerate(known)}
        order += [places[id(one)] for one in shuffled(known, mix.weights, seed)] * weight
        cards += [
            (f"{one.question.kind} ({model})" if len(models) > 1 else str(one.question.kind), one) for one in known
        ]
    random.Random(seed).shuffle(order)
    return Deck(cards, order, tolerance)


def pack(deck: Deck) -> dict[str, Any]:
    """A deck in values that msgpack knows."""
    return asdict(deck)


def unpack(data: Mapping[str, Any]) -> Deck:
    """The deck again."""
    cards = [(name, Known(_question(known["question"]), known["right"])) for name, known in data["cards"]]
    return Deck(cards, data["order"], data["tolerance"])


def _question(data: Mapping[str, Any]) -> Question:
    return Question(**{**data, "kind": Kind(data["kind"])})
