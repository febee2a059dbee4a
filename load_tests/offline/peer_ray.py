"""Scoring a folder by Ray Data and ONNX Runtime, as its documentation on batch inference writes it.

    python -m load_tests.offline.peer_ray FOLDER --bundle model_store/mnist-mda/1 --out answers/

Tasks read the files; an actor a core, each with a session of one thread, decodes and infers; tasks write Parquet. It
prints images and seconds as JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load_tests.offline.peer_columns import infer, open_session
from serving.bundle import Bundle
from serving.cores import cores
from serving.preprocess import read_image

BATCH = 64
ACTOR_CPUS = 0.5  # that Ray counts an actor as: on the rest it runs the tasks that read and write


class Scorer:
    """One actor: encoded images to columns."""

    def __init__(self, folder: Path, bundle_folder: Path) -> None:
        bundle = Bundle.load(bundle_folder)
        self.folder, self.manifest = folder, bundle.manifest
        self.session = open_session(bundle.onnx("float32"), threads=1)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer one batch."""
        images = np.stack([read_image(data, self.manifest.input) for data in batch["bytes"]])
        keys = [os.path.relpath(path, self.folder) for path in batch["path"]]
        return {"key": np.array(keys), **infer(self.session, images, self.manifest.labels)}


def score(folder: Path, bundle: Path, out: Path) -> None:
    """Write a folder of Parquet files."""
    import ray

    images = ray.data.read_binary_files(str(folder), include_paths=True)
    answers = images.map_batches(
        Scorer,
        fn_constructor_args=(folder, bundle),
        batch_size=BATCH,
        num_cpus=ACTOR_CPUS,
        compute=ray.data.ActorPoolStrategy(size=cores()),
    )
    answers.write_parquet(str(out), compression="zstd")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init("local", num_cpus=cores(), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.perf_counter()
    score(chosen.folder.resolve(), chosen.bundle.resolve(), chosen.out.resolve())
    seconds = time.perf_counter() - began
    import pyarrow.parquet as pq

    print(json.dumps({"images": pq.read_table(chosen.out, columns=[]).num_rows, "seconds": seconds}))
