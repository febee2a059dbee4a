"""What decides a table besides images and bundle."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from serving.bundle import Precision
from serving.runtimes import RuntimeName


class Returned(StrEnum):
    """Columns that a table has on request."""

    PROBABILITIES = "probabilities"
    RESPONSIBILITIES = "responsibilities"
    FEATURES = "features"


Format = Literal["parquet", "jsonl"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl"}  # of a table's files


@dataclass(frozen=True)
class ScoreOptions:
    """What decides a table besides images and bundle.

    Attributes:
        runtime: `onnx` or `torchscript`.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: `float16` and `int8` run the bundle's variants of these names.
        batch_size: images in one call of the graph.
        shard_images: images in one part, at most.
        top_k: classes in the column `top_k`, which is there if they are more than one.
        returns: more columns.
        coverage: the share of images whose right label is to be in the column `labels_at`; without one there is none.
        format: of the parts.
    """

    runtime: RuntimeName = "onnx"
    device: str = "cpu"
    precision: Precision = "float32"
    batch_size: int = 64
    shard_images: int = 1024
    top_k: int = 1
    returns: tuple[Returned, ...] = ()
    coverage: float | None = None
    format: Format = "parquet"
