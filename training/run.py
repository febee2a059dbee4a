"""A run: the folder `runs/<recipe>/<id>/` in which a training keeps everything.

recipe.toml     the resolved recipe
splits.npz      which images are in which split
run.json        where images and pretrained weights came from, their digests; what images there are more than once;
                when, on what device and in what precision it was begun and each time resumed; versions
metrics.jsonl   one line an epoch
checkpoint.pt   the newest good state: weights, optimiser, schedule
classifier.pt   the finished classifier, refit and temperature included
held_out.npz    what training images were judged by, where heads were fitted without them (training/held_out.py)
"""

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.bundle import staged
from training.backbones import backbone_of
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Dataset, Sources
from training.devices import PrecisionChoice, describe_device
from training.digests import require_own_temperature
from training.duplicates import find_duplicates
from training.files import replace_file, replace_text
from training.recipe import EncoderSpec, HeadSpec, Recipe, dump_recipe, read_recorded
from training.splits import Splits
from training.typicality import Judged, Typicality
from training.weights import describe_weights

RUNS = Path("runs")


class RunError(ValueError):
    """A run that is not there, not finished, or in the way."""


@dataclass(frozen=True)
class Run:
    """One training on disk.

    Attributes:
        path: its folder, which is there once it has begun.
        recipe: what is trained.
        start: the run whose epochs a new run begins with, if any.
    """

    path: Path
    recipe: Recipe
    start: "Run | None" = None

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.path.parent.name

    @classmethod
    def create(
        cls, name: str, recipe: Recipe, run_id: str | None, runs: Path = RUNS, start: "Run | None" = None
    ) -> "Run":
        """A new run, which has no folder until it begins; without `run_id` it is named after the time.

        With `start` it takes over the epochs of that run, so that only the refit and the calibration may differ.

        Raises:
            RecipeError: if the recipe's temperature was found for another recipe.
            RunError: if the run is there already, or `start` has no epochs or would have trained them otherwise.
        """
        require_own_temperature(recipe)
        if start is not None:
            _require_same_epochs(recipe, start)
        run = cls(runs / name / (run_id or datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")), recipe, start)
        run._require_new()
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Find a run that is there.

        Raises:
            RunError: if it is not one.
        """
        if not all((path / file).is_file() for file in ("recipe.toml", "run.json")):
            raise RunError(f"run must be a folder runs/<recipe>/<id> with a recipe.toml and a run.json, got {path}")
        path = path.resolve()
        return cls(path, read_recorded(path / "recipe.toml"))

    @property
    def has_begun(self) -> bool:
        """Whether the run is on disk."""
        return self.path.exists()

    def begin(
        self, dataset: Dataset, splits: Splits, sources: Sources, device: torch.device, precision: PrecisionChoice
    ) -> None:
        """Write the run's folder, whole or not at all.

        Raises:
            RunError: if the run is there already.
        """
        self._require_new()
        description = {
            **_contents(dataset, splits),
            "backbone": self._backbone(sources),
            **_places(sources),
            **self._beginning(_circumstances(device, precision)),
        }
        positions: dict[str, Any] = {name: part.numpy() for name, part in splits.items()}
        with staged(self.path) as stage:
            (stage / "recipe.toml").write_text(dump_recipe(self.recipe), encoding="utf-8")
            (stage / "run.json").write_text(_as_json(description), encoding="utf-8")
            np.savez(stage / "splits.npz", **positions)
            if self.start is not None:
                for file in ("metrics.jsonl", "checkpoint.pt"):
                    shutil.copy2(self.start.path / file, stage / file)

    def _beginning(self, circumstances: dict[str, Any]) -> dict[str, Any]:
        """When and on what the epochs began, if in another run, and then when and on what this one took them over."""
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        begun = circumstances | {"versions": versions, "started": _now()}
        if self.start is None:
            return begun
        theirs = self.start.description()
        kept = {key: theirs[key] for key in begun if key in theirs}
        return {**kept, "epochs_from": str(self.start.path.resolve()), "taken_over": begun}

    def resume(self, sources: Sources, device: torch.device, precision: PrecisionChoice) -> None:
        """Write into run.json that the run goes on, and where its images and weights are now."""
        description, state = self.description(), self.load_checkpoint()
        resumed = {"at": _now(), "after_epoch": 0 if state is None else state["epoch"]}
        description["resumed"] = [*description.get("resumed", []), resumed | _circumstances(device, precision)]
        replace_text(self.path / "run.json", _as_json(description | _places(sources)))

    def description(self) -> dict[str, Any]:
        """Read run.json; nothing before the run has begun."""
        file = self.path / "run.json"
        description: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
        return description

    def splits(self) -> Splits:
        """Read which images are in which split."""
        with np.load(self.path / "splits.npz") as recorded:
            return {name: torch.from_numpy(recorded[name]) for name in recorded.files}

    def require_same_images(self, dataset: Dataset) -> None:
        """Refuse other images than those that the run was begun with.

        Raises:
            RunError: if the fingerprints differ.
        """
        begun = self.description()["dataset"]["fingerprint"]
        if (found := dataset.fingerprint()) != begun:
            raise RunError(
                f"images must be those that {self.path} was trained on (fingerprint {begun[:12]}), "
                f"got others ({found[:12]}): put them back, or train a new run"
            )

    def require_same_weights(self, sources: Sources) -> None:
        """Refuse other weights of a frozen backbone than those that the run was begun with.

        Raises:
            RunError: if their digests differ.
        """
        begun, found = _weights_digest(self.description()), _weights_digest({"backbone": self._backbone(sources)})
        if found != begun:
            raise RunError(
                f"weights must be those that {self.path} was begun with ({begun}), "
                f"got others ({found}): name theirs with --weights, or train a new run"
            )

    def _require_new(self) -> None:
        if self.has_begun:
            raise RunError(
                f"run must be new, got {self.path}, which is there: go on with --resume {self.path} or name another"
            )

    def _backbone(self, sources: Sources) -> dict[str, str | None] | None:
        """Which weights the backbone has; None for a recipe without one."""
        kind = self.recipe.encoder.kind
        return None if backbone_of(kind) is None else describe_weights(kind, sources.weights)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace checkpoint.pt."""
        replace_file(self.path / "checkpoint.pt", lambda out: torch.save(state, out))

    @property
    def has_checkpoint(self) -> bool:
        """Whether an epoch has come to its end."""
        return (self.path / "checkpoint.pt").is_file()

    @property
    def has_all_epochs(self) -> bool:
        """Whether there is none left to train."""
        epochs = self.recipe.fit.epochs
        return not epochs or any(line["epoch"] == epochs for line in self.epochs())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest good state, or None before the first epoch's end."""
        if not self.has_checkpoint:
            return None
        state: dict[str, Any] = torch.load(self.path / "checkpoint.pt", map_location="cpu", weights_only=True)
        return state

    def log_epoch(self, metrics: dict[str, Any]) -> None:
        """Write an epoch's line, in the place of any line of this or a later epoch."""
        kept = [line for line in self.epochs() if line["epoch"] < metrics["epoch"]]
        text = "".join(json.dumps(line) + "\n" for line in [*kept, metrics])
        replace_text(self.path / "metrics.jsonl", text)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def save_classifier(self, classifier: Classifier) -> None:
        """Write classifier.pt."""
        architecture = asdict(classifier.architecture)
        for part in ("encoder", "head"):
            architecture[part] = getattr(classifier.architecture, part).model_dump()
        state = {
            "architecture": architecture,
            "temperature": classifier.temperature,
            "class_biases": classifier.class_biases,
            "calibration": classifier.calibration,
            "component_temperature": classifier.component_temperature,
            "component_calibration": classifier.component_calibration,
            "typicality": classifier.typicality and classifier.typicality.state_dict(),
            "state": {name: v for name, v in classifier.state_dict().items() if not name.startswith("typicality.")},
        }
        replace_file(self.path / "classifier.pt", lambda out: torch.save(state, out))

    def load_classifier(self) -> Classifier:
        """Read classifier.pt, in evaluation mode on the CPU.

        Raises:
            RunError: if the training has not come to its end.
        """
        file = self.path / "classifier.pt"
        if not file.is_file():
            raise RunError(
                f"run must be finished, got {self.path} without classifier.pt: go on with --resume {self.path}"
            )
        saved = torch.load(file, map_location="cpu", weights_only=True)
        tree = saved["architecture"]
        architecture = Architecture(
            tuple(tree["image_shape"]), tree["classes"], EncoderSpec(**tree["encoder"]), HeadSpec(**tree["head"])
        )
        classifier = build_classifier(architecture)
        classifier.load_state_dict(saved["state"])
        classifier.temperature = saved["temperature"]
        classifier.class_biases.copy_(saved.get("class_biases", torch.zeros(())))  # runs of before these were kept
        classifier.calibration = saved.get("calibration", {})
        classifier.component_temperature = saved.get("component_temperature", 1.0)
        classifier.component_calibration = saved.get("component_calibration", {})
        if (typicality := saved.get("typicality")) is not None:
            classifier.typicality = Typicality.from_state(typicality)
        return classifier.eval()

    def save_judged(self, judged: Judged) -> None:
        """Write held_out.npz."""
        replace_file(self.path / "held_out.npz", lambda out: np.savez(out, **judged._asdict()))

    def load_judged(self) -> Judged | None:
        """Read held_out.npz; None for a run that has none."""
        file = self.path / "held_out.npz"
        if not file.is_file():
            return None
        with np.load(file) as arrays:
            return Judged(**arrays)


def _weights_digest(description: dict[str, Any]) -> str | None:
    """SHA-256 of the backbone's weights, or `download`, from run.json; None for a run without a backbone."""
    if "backbone" not in description:  # runs of before it was kept have the digest alone
        digest: str | None = description.get("weights")
        return digest
    backbone = description["backbone"]
    return None if backbone is None else backbone["sha256"] or backbone["weights"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _as_json(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=2) + "\n"


def _contents(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """What the images are."""
    counts = {name: len(positions) for name, positions in splits.items()}
    return {
        "dataset": {"name": dataset.name, "splits": counts, "fingerprint": dataset.fingerprint()},
        "classes": dataset.classes,
        "input": dataset.input.model_dump(),
        "duplicates": find_duplicates(dataset, splits),
    }


def _places(sources: Sources) -> dict[str, str | None]:
    """Where the user's own files are."""
    files = {"folder": sources.folder, "weights_file": sources.weights}
    return {name: None if path is None else str(path.resolve()) for name, path in files.items()}


def _circumstances(device: torch.device, precision: PrecisionChoice) -> dict[str, Any]:
    chosen = {"chosen": precision.precision, "why": precision.why}
    return {"device": describe_device(device), "precision": chosen}


def _require_same_epochs(recipe: Recipe, start: Run) -> None:
    """Refuse a run whose epochs are not those that `recipe` would train."""
    if not start.has_checkpoint:
        raise RunError(f"run to start from must have trained an epoch, got {start.path} without a checkpoint")
    for part in ("seed", "data", "encoder", "head", "loss", "fit"):
        ours, theirs = getattr(recipe, part), getattr(start.recipe, part)
        if ours != theirs:
            raise RunError(f"run to start from must have {part} = ({ours}), got {start.path} with ({theirs})")
