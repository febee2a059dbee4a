"""What a machine does when nothing but the work is left: a bundle's graph on decoded arrays, and Pillow on files.

Both run in several processes that begin together, as many as the program that is measured against them has.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.bundle import Bundle, InputSpec, Precision
from serving.preprocess import read_image
from serving.runtimes import open_runtime

Reader = Callable[[Path, InputSpec], NDArray[np.uint8]]
_barrier: Any = None


@dataclass(frozen=True)
class Layout:
    """How inferences share the cores: so many at a time, of so many threads each."""

    inferences: int
    threads: int

    def __str__(self) -> str:
        return f"{self.inferences} x {self.threads}"


def bare_runtime(
    bundle: Bundle,
    layout: Layout,
    images: NDArray[np.uint8],
    batch: int,
    seconds: float,
    precision: Precision = "float32",
    device: str = "cpu",
) -> tuple[float, float]:
    """The graph alone, by ONNX Runtime, over and over on images in memory.

    Args:
        bundle: whose graph.
        layout: processes, and threads of each.
        images: (N, channels, height, width), N a multiple of `batch`.
        batch: images in one call.
        seconds: how long.
        precision: of the graph.
        device: `cpu` or `cuda`.

    Returns:
        Images a second of all processes together, and the median time of one call in milliseconds.
    """
    arguments = (bundle, layout.threads, images, batch, seconds, precision, device)
    times = _together(_infer, [arguments] * layout.inferences)
    rates = [batch * len(calls) / sum(calls) for calls in times]
    return sum(rates), 1000 * statistics.median(call for calls in times for call in calls)


def bare_decoding(paths: Sequence[Path], spec: InputSpec, reader: Reader, processes: int) -> float:
    """Files read, decoded and brought to the model's size, once each: images a second of all processes together."""
    shares = [paths[start::processes] for start in range(min(processes, len(paths)))]
    seconds = _together(_decode, [(share, spec, reader) for share in shares])
    return float(sum(len(share) / took for share, took in zip(shares, seconds, strict=True)))


def read_as_served(path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    """A file as serving and training read it."""
    return read_image(path.read_bytes(), spec)


def read_plainly(path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    """A file as one reads it by Pillow alone, without limits and without thought of strangers."""
    mode, size = ("L" if spec.channels == 1 else "RGB"), (spec.width, spec.height)
    with Image.open(path) as picture:
        picture.draft(mode, size)
        return np.asarray(ImageOps.fit(picture.convert(mode), size, Image.Resampling.BILINEAR))


def _together(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call `work` in one process for each of `arguments`; it waits for the others at the barrier."""
    context = multiprocessing.get_context("spawn")
    barrier = (context.Barrier(len(arguments), timeout=60),)
    with ProcessPoolExecutor(len(arguments), context, _meet, barrier) as pool:
        tasks = [pool.submit(work, *one) for one in arguments]
        return [task.result() for task in tasks]


def _meet(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _infer(
    bundle: Bundle,
    threads: int,
    images: NDArray[np.uint8],
    batch: int,
    seconds: float,
    precision: Precision,
    device: str,
) -> list[float]:
    run = open_runtime(bundle, "onnx", device, threads, precision)
    run(images[:batch])
    _barrier.wait()
    calls, now = [], time.perf_counter()
    end = now + seconds
    for start in cycle(range(0, len(images), batch)):
        before, _ = now, run(images[start : start + batch])
        now = time.perf_counter()
        calls.append(now - before)
        if now >= end:
            break
    return calls


def _decode(paths: Sequence[Path], spec: InputSpec, reader: Reader) -> float:
    reader(paths[0], spec)
    _barrier.wait()
    began = time.perf_counter()
    for path in paths:
        reader(path, spec)
    return time.perf_counter() - began
