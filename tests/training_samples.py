"""Small recipes, real digits and folders of images that the tests of training share."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from training.data import Dataset, Sources
from training.datasets import load_dataset
from training.devices import PrecisionChoice
from training.fit import TrainingState
from training.images import Labelled
from training.recipe import DataSpec, Recipe, parse_recipe
from training.run import Run
from training.splits import split
from training.tables import END, START

TREE: dict[str, dict[str, Any]] = {
    "data": {"name": "digits"},
    "encoder": {"kind": "six-conv", "dim": 3, "width": 4},
    "head": {"kind": "lda"},
    "loss": {"kind": "cross-entropy"},
    "fit": {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "lr": 0.01, "precision": "float32"},
}


def small_recipe(seed: int = 0, **sections: dict[str, Any]) -> Recipe:
    """A recipe of few weights; `sections` replace keys: small_recipe(fit={"epochs": 3})."""
    tree: dict[str, Any] = {name: {**TREE.get(name, {}), **sections.get(name, {})} for name in {*TREE, *sections}}
    return parse_recipe({"seed": seed, **tree})


@functools.cache
def digits() -> Dataset:
    return load_dataset(DataSpec(name="digits"), Sources())


def digits_from(start: int, count: int) -> Labelled:
    """Real digits, `count` of them from position `start`."""
    part = slice(start, start + count)
    return Labelled(digits().images[part], digits().labels[part])


PRECISION = PrecisionChoice("float32", "the recipe names it")


def begun(run: Run) -> Run:
    """A run that has begun on all the digits, and trained nothing yet."""
    splits = split(digits(), validation=0.1, test=0.2, seed=0)
    run.begin(digits(), splits, Sources(), torch.device("cpu"), PRECISION)
    return run


def write_digit_folder(folder: Path, classes: str = "014", per_class: int = 40) -> Path:
    """A folder of class folders: real digits as 8 x 8 PNG files."""
    for label in classes:
        (folder / label).mkdir(parents=True)
        found = (digits().labels == int(label)).nonzero()[:per_class, 0].tolist()
        for position in found:
            Image.fromarray(digits().images[position, 0].numpy()).save(folder / label / f"{position}.png")
    return folder


FOLDER_DATA = {"name": "folder", "channels": 1, "size": 8, "validation": 0.2, "test": 0.25}


def project_in(folder: Path) -> None:
    """What --record writes to: a README with a marked table, and docs."""
    (folder / "docs").mkdir()
    (folder / "README.md").write_text(f"{START}\n{END}\n")


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two modules agree in every bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def logged_epochs(run: Path) -> list[int]:
    """The epochs of a run's metrics.jsonl, line by line."""
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(state: TrainingState) -> TrainingState:
    """What a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    back: TrainingState = torch.load(file, weights_only=True)
    return back


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("seconds", "images_per_s")}


def int8_weights(graph: Path) -> list[np.ndarray]:
    """The weights (O, I, height, width) of the convolutions in 8 bits."""
    model = onnx.load(graph).graph
    constants = {constant.name: constant for constant in model.initializer}
    of_weights = {node.output[0]: node.input[0] for node in model.node if node.op_type == "DequantizeLinear"}
    names = [of_weights[node.input[1]] for node in model.node if node.op_type == "Conv"]
    return [onnx.numpy_helper.to_array(constants[name]) for name in names]
