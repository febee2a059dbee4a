"""The bundle: the contract between training and every server.

A bundle is one folder, `<name>/<version>/`:

    bundle.json   the manifest below, with the SHA-256 of every other file
    model.pt      TorchScript
    model.onnx    ONNX, one file
    golden.npz    `images` and, for each output, what the eager float64 model answered

and, for each of the manifest's variants, `int8` (convolutions in 8 bits) and `float16` (all but the head),

    model.<variant>.onnx   the same graph in this precision
    golden.<variant>.npz   what it answered for these images when it was exported

and, if images were held out from the training, for each of these graphs,

    held_out.npz, held_out.<variant>.npz   what it answered for them (serving/held_out.py)

and, if it was exported with examples,

    examples.zip           thumbnails of training images that show what the components are (serving/examples.py)

and, but for bundles from before there was one,

    plane.npz              where held-out images and the components lie in a plane (serving/plane.py)

All graphs take `images`, uint8 (N, channels, height, width), N free, and return a tuple in the order of
`Manifest.outputs`: `posterior` (N, C), `responsibilities` (N, C, K), `log_density` (N,), `typicality_score` (N,),
`features` (N, D). Not every head has responsibilities and a log-density; a server goes by the outputs, not by the kind
of the head. Bundles of schema 1 are of before there were held-out images, and have no typicality score.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import BundleError

MANIFEST = "bundle.json"
TORCHSCRIPT = "model.pt"
ONNX = "model.onnx"
GOLDEN = "golden.npz"
HELD_OUT = "held_out.npz"
EXAMPLES = "examples.zip"
PLANE = "plane.npz"
REQUIRED_FILES = (TORCHSCRIPT, ONNX, GOLDEN)

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"

VariantPrecision = Literal["float16", "int8"]
Precision = Literal["float32", VariantPrecision]
OutputName = Literal["posterior", "responsibilities", "log_density", "typicality_score", "features"]
OUTPUTS: tuple[OutputName, ...] = get_args(OutputName)
OPTIONAL_OUTPUTS: tuple[OutputName, ...] = ("responsibilities", "log_density", "typicality_score")
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComponentName = Annotated[str, Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class InputSpec(_Strict):
    """What an image is made into before the graph sees it.

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        height: rows, in pixels.
        width: columns, in pixels.
        resize: `crop` scales the shorter side and cuts the centre; `stretch` changes the aspect ratio.
        background: gray level, 0 to 255, that shows through transparent pixels.
    """

    channels: Literal[1, 3]
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: Literal["crop", "stretch"] = "crop"
    background: int = Field(default=0, ge=0, le=255)


class HeadShape(_Strict):
    """The head's name, for people, and its shape: C classes, D features, K components a class (1 but for mixtures)."""

    kind: str = Field(pattern=NAME_PATTERN, max_length=100)
    classes: int = Field(ge=2)
    dim: int = Field(ge=1)
    components: int = Field(ge=1)


class DatasetInfo(_Strict):
    """Which images the model has seen: name, images per split, SHA-256 over pixels and labels."""

    name: str
    splits: dict[str, int]
    fingerprint: Digest


class BackboneInfo(_Strict):
    """The pretrained network that a model's features are of.

    Attributes:
        kind: its name in recipes.
        weights: where they came from: a package and its version, the name of a file, or `download`.
        sha256: of the file of weights; None if the library downloaded them.
        licence: of the network's published weights, as their publisher states it; None if it is not stated.
    """

    kind: str
    weights: str
    sha256: Digest | None = None
    licence: str | None = None


class HeldOutInfo(_Strict):
    """The images that make answers comparable: neither the weights nor the temperature have seen them.

    Attributes:
        images: how many.
        by: `split`, a split of their own; or `cross-fit`, training images of a head in closed form on features that
            nobody has learned, each judged by a head that was fitted without it.
    """

    images: int = Field(ge=1)
    by: Literal["split", "cross-fit"]


class ExamplesInfo(_Strict):
    """What the file of examples has of each component, beside the mean of its training images.

    Attributes:
        nearest: how many training images at most; 0 where no single image may be shown.
        side: of the longer side of every thumbnail, in pixels, at most.
    """

    nearest: int = Field(ge=0)
    side: int = Field(ge=1)


class PlaneInfo(_Strict):
    """What the file of the feature plane has.

    Attributes:
        images: how many held-out images it shows; of a bundle without any, images of the test split.
        explained: the share of the variance of the training images' features that is in the plane; None for one or two
            features, which are all in it.
    """

    images: int = Field(ge=1)
    explained: float | None = Field(default=None, ge=0, le=1)


class VariantCost(_Strict):
    """What a graph of another precision changes on some images. Pairs are of the float32 graph and of the variant.

    Attributes:
        split: which the images are from.
        images: how many.
        accuracy: share of them.
        nll: negative log-likelihood in nats.
        ece: expected calibration error.
        agreement: share of images for which both graphs find the same class, and the same component of it.
        density_shift: by how many nats the variant's log-density is higher, quantiles by their shares; None for a head
            without densities.
        density_spread: between the quartiles of the float32 graph's log-density, in nats.
    """

    split: Literal["train", "validation", "test"]
    images: int
    accuracy: tuple[float, float]
    nll: tuple[float, float]
    ece: tuple[float, float]
    agreement: float
    density_shift: dict[str, float] | None = None
    density_spread: float | None = None


class Variant(_Strict):
    """What a graph of another precision costs.

    Attributes:
        accuracy: on the test split.
        agreement: on the test split, as in `VariantCost`.
        judged: on the images that decide whether it is good enough; None in a bundle from before they were others than
            the test split's.
        test: on the test split, which decides nothing; None in such a bundle.
    """

    accuracy: float
    agreement: float | None = None
    judged: VariantCost | None = None
    test: VariantCost | None = None


class Manifest(_Strict):
    """Everything about a bundle that is not weights; `bundle.json`.

    Attributes:
        held_out: which images answers are compared with; None if the recipe held none out, or in a bundle of schema 1.
        priors: each class's share of the training images; None in a bundle of schema 1.
        component_names: what people call components, by label and component; those that nobody has named are missing.
        examples: what there is to see of the components; None if there is no such file.
        plane: what the file of the feature plane has; None if there is no such file.
    """

    schema_version: Literal[1, 2] = 2
    name: str = Field(pattern=NAME_PATTERN, max_length=100)
    version: int = Field(ge=1)
    labels: tuple[str, ...] = Field(min_length=2)
    input: InputSpec
    head: HeadShape
    outputs: tuple[OutputName, ...]
    recipe: dict[str, Any]
    dataset: DatasetInfo
    backbone: BackboneInfo | None = None
    held_out: HeldOutInfo | None = None
    priors: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    component_names: dict[str, dict[int, ComponentName]] = Field(default_factory=dict)
    examples: ExamplesInfo | None = None
    plane: PlaneInfo | None = None
    metrics: dict[str, Any]
    variants: dict[VariantPrecision, Variant] = Field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    versions: dict[str, str]
    sha256: dict[FileName, Digest]

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if len(self.labels) != self.head.classes:
            raise ValueError(f"labels must be one per class ({self.head.classes}), got {len(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be unique, got {list(self.labels)}")
        if self.outputs != tuple(name for name in OUTPUTS if name in self.outputs or name not in OPTIONAL_OUTPUTS):
            raise ValueError(
                f"outputs must be {', '.join(OUTPUTS)} in this order, of which only {' and '.join(OPTIONAL_OUTPUTS)} "
                f"may lack, got {', '.join(self.outputs)}"
            )
        if self.priors is not None and len(self.priors) != self.head.classes:
            raise ValueError(f"priors must be one per class ({self.head.classes}), got {len(self.priors)}")
        for label, names in self.component_names.items():
            if label not in self.labels or not all(0 <= component < self.head.components for component in names):
                raise ValueError(f"component_names must be of the model's labels and components, got {label}: {names}")
        if ("typicality_score" in self.outputs) != (self.held_out is not None):
            raise ValueError("typicality_score must be among the outputs if and only if there are held-out images")
        if foreign := sorted(set(self.sha256) - set(self.files)):  # a worker would find code among them, and run it
            raise ValueError(f"sha256 must list the bundle's own files alone, got {', '.join(foreign)} too")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the bundle's files, all but `bundle.json`."""
        precisions: tuple[Precision, ...] = ("float32", *self.variants)
        held_out = () if self.held_out is None else (held_out_file(precision) for precision in precisions)
        examples = () if self.examples is None else (EXAMPLES,)
        plane = () if self.plane is None else (PLANE,)
        graphs = (name for precision in self.variants for name in graph_files(precision))
        return *REQUIRED_FILES, *graphs, *held_out, *examples, *plane

    @property
    def atypical_below(self) -> float | None:
        """The log-density in nats that one in a hundred of the test split's images is below; None if it is not known.

        Less dense images are called atypical.
        """
        below: float | None = self.metrics.get("log_density_quantiles", {}).get("0.01")
        return below


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read and verify the bundle in folder `path`.

        Raises:
            BundleError: if the folder, the manifest or a file is missing, the manifest breaks the schema, or a file's
                digest is not the manifest's. The message names the file.
        """
        folder = Path(path)
        manifest = _read_manifest(folder / MANIFEST)
        for name in manifest.files:
            if name not in manifest.sha256:
                raise BundleError(f"{folder / MANIFEST}: sha256 must list {name}, got {sorted(manifest.sha256)}")
        for name, expected in manifest.sha256.items():
            _verify(folder / name, expected)
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of its files, in hexadecimal: which weights these are, whatever they are called.

        The feature plane is left out, for it answers nothing: a bundle that is given one stays the same model.
        """
        digests = {name: digest for name, digest in self.manifest.sha256.items() if name != PLANE}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    @property
    def torchscript(self) -> Path:
        """The TorchScript graph."""
        return self.path / TORCHSCRIPT

    def onnx(self, precision: Precision = "float32") -> Path:
        """The ONNX graph.

        Raises:
            BundleError: if the bundle has none in this precision.
        """
        graph, _ = self._files(precision)
        return graph

    def golden(self, precision: Precision = "float32") -> Path:
        """The file of the golden inputs and outputs."""
        _, answers = self._files(precision)
        return answers

    def held_out(self, precision: Precision = "float32") -> Path | None:
        """The file of what held-out images were answered; None if the bundle has none.

        Raises:
            BundleError: if the bundle has no graph in this precision.
        """
        graph, _ = self._files(precision)
        return None if self.manifest.held_out is None else graph.with_name(held_out_file(precision))

    @property
    def plane(self) -> Path | None:
        """The file of the feature plane; None if the bundle has none."""
        return None if self.manifest.plane is None else self.path / PLANE

    def _files(self, precision: Precision) -> tuple[Path, Path]:
        if precision != "float32" and precision not in self.manifest.variants:
            raise BundleError(
                f"precision of {self.path} must be float32, got {precision}: export the bundle with --{precision}"
            )
        graph, answers = graph_files(precision)
        return self.path / graph, self.path / answers

    def read_golden(self, precision: Precision = "float32") -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        """The golden images (N, channels, height, width) and the outputs for them, by name.

        They are those of the float64 model, or, in another precision, those of its graph at export.
        """
        with np.load(self.golden(precision), allow_pickle=False) as golden:
            arrays = {name: golden[name] for name in golden.files}
        images = arrays.pop("images", None)
        return self.read_golden()[0] if images is None else images, arrays


def graph_files(precision: Precision) -> tuple[str, str]:
    """Names of the ONNX graph in a precision and of its golden answers."""
    if precision == "float32":
        return ONNX, GOLDEN
    return f"model.{precision}.onnx", f"golden.{precision}.npz"


def held_out_file(precision: Precision) -> str:
    """Name of the file of a graph's answers for held-out images."""
    return HELD_OUT if precision == "float32" else f"held_out.{precision}.npz"


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Digest every file in `folder` and write its `bundle.json`; `fields` are the Manifest's others.

    The folder must hold no `bundle.json` yet.

    Raises:
        BundleError: if a field breaks the schema.
    """
    digests = {file.name: digest(file) for file in sorted(folder.iterdir()) if file.is_file()}
    try:
        manifest = Manifest(sha256=digests, **fields)
    except ValidationError as exc:
        raise BundleError(f"bundle must follow its schema, got {_problems(exc)}") from exc
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """What stands in `bundle.json`."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


@contextmanager
def staged(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside `target` to write into; it becomes `target` if the block succeeds and vanishes if not.

    Raises:
        BundleError: if `target` exists and may not be replaced.
    """
    if target.exists() and not replace:
        raise BundleError(
            f"{target} must not exist yet, got a bundle that is there: choose another version or replace it"
        )
    is_first = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    stage.chmod(0o755)
    try:
        yield stage
        _swap(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if is_first and not target.exists():
            with suppress(OSError):  # another version may have come in the meantime
                target.parent.rmdir()


def _swap(stage: Path, target: Path) -> None:
    """Rename `stage` to `target`; what was there is out of the way first and deleted last, so it is never lost."""
    if not target.exists():
        stage.replace(target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.old.", dir=target.parent) as aside:
        old = target.replace(Path(aside) / target.name)
        try:
            stage.replace(target)
        except OSError:
            old.replace(target)
            raise


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(file: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as exc:
        raise BundleError(f"{file} must exist: a bundle is a folder <name>/<version> that holds {MANIFEST}") from exc
    except OSError as exc:
        raise BundleError(f"{file} must be readable, got {exc}") from exc
    except ValidationError as exc:
        raise BundleError(f"{file} must follow the schema of a bundle, got {_problems(exc)}") from exc


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'bundle'}: {e['msg']}" for e in error.errors()[:5])


def _verify(file: Path, expected: str) -> None:
    if not file.is_file():
        raise BundleError(f"{file} must exist: {MANIFEST} lists it")
    actual = digest(file)
    if actual != expected:
        raise BundleError(f"{file} must have SHA-256 {expected}, got {actual}: the file was changed or damaged")
