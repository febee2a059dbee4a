"""Scoring a folder by a PyTorch DataLoader and ONNX Runtime, as one writes it without `score`.

    python -m load_tests.offline.peer_dataloader FOLDER --bundle model_store/mnist-mda/1 --out answers.parquet

Worker processes read and decode, one a core; the main process infers with all cores and writes. It prints images and
seconds as JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from load_tests.offline.peer_columns import infer, open_session
from serving.bundle import Bundle, InputSpec
from serving.cores import cores
from serving.preprocess import read_image

BATCH = 64


class Images(Dataset[tuple[str, NDArray[np.uint8]]]):
    """The files of a folder, decoded."""

    def __init__(self, folder: Path, spec: InputSpec) -> None:
        self.folder, self.spec = folder, spec
        self.keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        key = self.keys[index]
        return key, read_image((self.folder / key).read_bytes(), self.spec)


def score(folder: Path, bundle: Bundle, out: Path) -> int:
    """Write the Parquet file; how many images it has."""
    images = Images(folder, bundle.manifest.input)
    session = open_session(bundle.onnx("float32"), threads=cores())
    loader: Any = DataLoader(images, batch_size=BATCH, num_workers=cores(), prefetch_factor=4)
    writer = None
    for keys, pixels in loader:
        found = infer(session, pixels.numpy(), bundle.manifest.labels)
        table = pa.table({"key": keys, **found})
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return len(images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    bundle, began = Bundle.load(chosen.bundle), time.perf_counter()
    count = score(chosen.folder, bundle, chosen.out)
    print(json.dumps({"images": count, "seconds": time.perf_counter() - began}))
