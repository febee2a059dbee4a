"""Scoring the images of one shard: read → decode → infer → rows, in batches that are full until the last.

What is in a batch depends on the shard alone, so a shard has the same rows whoever scores it and however often.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.batch.figures import Figures, Laps
from serving.batch.source import Item
from serving.batch.table import Table
from serving.errors import ServingError
from serving.intake import Decoded
from serving.predictor import Predictor
from serving.preprocess import read_array
from serving.runtimes import Outputs

CHUNK = 1024  # images that become rows together
AHEAD = 2  # batches that decoders are ahead of the graph, at most
AHEAD_BYTES = 128 * 1024 * 1024  # of encoded images

Tell = Callable[[int, int], None]  # images more, and how many of them got an error


@dataclass
class _Pending:
    """Images that have been read and are yet to become rows: making columns takes as long for few as for many.

    Attributes:
        keys: their names.
        found: for each its place in the outputs, or its error.
        outputs: of the batches.
        answered: images in these.
    """

    keys: list[str] = field(default_factory=list)
    found: list[int | ServingError] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    answered: int = 0

    def together(self) -> Outputs | None:
        """The outputs of all batches; None if there are none."""
        if not self.outputs:
            return None
        return {name: np.concatenate([one[name] for one in self.outputs]) for name in self.outputs[0]}

    def tell(self, tell: Tell, told: int) -> int:
        """Tell of the images behind the first `told`; how many have been told of then."""
        errors = sum(isinstance(one, ServingError) for one in self.found[told:])
        tell(len(self.found) - told, errors)
        return len(self.found)


class Scorer:
    """Scores shards with one predictor.

    Args:
        predictor: warmed up.
        table: what the rows are.
        batch_size: images in one call of the graph.
        decoders: threads that decode ahead of the graph; one decodes in its turn.
    """

    def __init__(self, predictor: Predictor, table: Table, batch_size: int, decoders: int = 1) -> None:
        self._predictor = predictor
        self._table = table
        self._batch_size = batch_size
        self._decoders = ThreadPoolExecutor(decoders) if decoders > 1 else None

    def score(self, items: Iterator[Item], tell: Tell) -> tuple[pa.Table, Figures]:
        """The rows of a shard's images, and what there is to tell of them.

        Args:
            items: the images.
            tell: hears after every batch how many images it had.
        """
        figures = Figures.of(self._predictor.bundle)
        laps = Laps(figures)
        shape = self._predictor.bundle.manifest.input
        images = np.empty((self._batch_size, shape.channels, shape.height, shape.width), np.uint8)
        pending, chunks, filled, told = _Pending(), list[pa.RecordBatch](), 0, 0
        for key, image in self._decoded(items, laps):
            pending.keys.append(key)
            if isinstance(image, ServingError):
                pending.found.append(image)
                continue
            pending.found.append(pending.answered + filled)
            images[filled] = image
            filled += 1
            if filled == self._batch_size:
                self._infer(images, pending, figures, laps)
                filled, told = 0, pending.tell(tell, told)
                if len(pending.keys) >= CHUNK:
                    chunks.append(self._rows(pending, figures, laps))
                    pending, told = _Pending(), 0
        if filled:
            self._infer(images[:filled], pending, figures, laps)
        if pending.keys:
            pending.tell(tell, told)
            chunks.append(self._rows(pending, figures, laps))
        return pa.Table.from_batches(chunks, self._table.schema), figures

    def _infer(self, images: NDArray[np.uint8], pending: _Pending, figures: Figures, laps: Laps) -> None:
        pending.outputs.append(self._predictor.infer(images))
        pending.answered += len(images)
        figures.batches += 1
        figures.full += len(images) == self._batch_size
        laps.lap("infer")

    def _rows(self, pending: _Pending, figures: Figures, laps: Laps) -> pa.RecordBatch:
        outputs = pending.together()
        figures.count(pending.found, outputs, self._predictor)
        rows = self._table.rows(pending.keys, pending.found, outputs)
        laps.lap("write")
        return rows

    def _decoded(self, items: Iterator[Item], laps: Laps) -> Iterator[tuple[str, Decoded]]:
        """The images with their keys, in order."""
        if self._decoders is None:
            for item in items:
                laps.lap("read")
                image = self._decode(item)
                laps.lap("decode")
                yield item.key, image
            return
        waiting: deque[tuple[Item, Future[Decoded]]] = deque()
        held = 0
        for item in items:
            laps.lap("read")
            waiting.append((item, self._decoders.submit(self._decode, item)))
            held += item.image_bytes
            while len(waiting) > AHEAD * self._batch_size or held > AHEAD_BYTES:
                held -= waiting[0][0].image_bytes
                yield _awaited(*waiting.popleft(), laps)
        while waiting:
            yield _awaited(*waiting.popleft(), laps)

    def _decode(self, item: Item) -> Decoded:
        if isinstance(item.image, ServingError):
            return item.image
        try:
            if isinstance(item.image, bytes):
                return self._predictor.decode(item.image)
            return read_array(item.image, self._predictor.bundle.manifest.input)
        except ServingError as error:
            return error


def _awaited(item: Item, image: Future[Decoded], laps: Laps) -> tuple[str, Decoded]:
    decoded = image.result()
    laps.lap("decode")
    return item.key, decoded
