"""Recipes: everything that decides a training, as a TOML file that a schema checks.

    recipe = load_recipe("digits-mda", overrides=["fit.epochs=3"])

`recipe` is frozen; `dump_recipe` writes it out again with every default spelled out.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AliasChoices, Field, ValidationError, model_validator

from training.backbones import BACKBONES, SIDE
from training.datasets import DATASETS
from training.encoders import EncoderKind
from training.gaussians import Covariance
from training.heads import HEADS
from training.schema import TomlSection, one_of, problems

RECIPES_FOLDER = Path(__file__).parent / "recipes"

LossKind = Literal["cross-entropy", "nll", "dnll", "em-dnll", "logistic", "poisson-nll", "lda", "hinge", "fisher"]
LOSSES_OF_COMPONENTS, LOSSES_OF_DENSITIES = ("em-dnll",), ("nll", "dnll", "poisson-nll", "lda")
LOSSES_OF_MARGINS = ("hinge",)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class DataSpec(TomlSection):
    """Which images. `test` and `split_seed` decide the test split where the data set has none of its own."""

    name: Annotated[str, one_of(DATASETS)]
    validation: Share = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0  # the recipe's seed decides the validation split
    channels: Literal[1, 3] = 3  # these four: for `folder` only
    size: Annotated[int, Field(ge=4, le=1024)] = 32
    resize: Literal["crop", "stretch"] = "crop"
    background: Annotated[int, Field(ge=0, le=255)] = 0


class EncoderSpec(TomlSection):
    """Images to features; see training/encoders.py."""

    kind: EncoderKind = "six-conv"
    dim: Annotated[int, Field(ge=1)] | None = None  # of the projection; without one the pooled features as they are
    width: Annotated[int, Field(ge=1)] = 64
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), strict=False)
    dropout: Share = 0.0


class HeadSpec(TomlSection):
    """Features to log-joints: one of `HEADS` of training/heads.py. Covariance and simplex concern lda and mda."""

    kind: Annotated[str, one_of(HEADS)]
    components: Annotated[int, Field(ge=1, le=64)] = 1
    covariance: Covariance = "spherical"
    tied: bool = False  # mda: one covariance for all components of all classes, as lda has
    simplex: bool = False


class LossSpec(TomlSection):
    """Which loss; `weight` is the lambda of dnll and em-dnll."""

    kind: LossKind
    weight: Positive = 1.0


class FitSpec(TomlSection):
    """The training loop."""

    epochs: Annotated[int, Field(ge=0)]  # 0: the [refit] alone, on an encoder that learns nothing
    batch_size: Annotated[int, Field(ge=2)] = 256
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-3
    momentum: Share = 0.9  # sgd only; one-cycle sets its own
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    crop_padding: Annotated[int, Field(ge=0)] = 0  # pixels; random crops of the padded image
    flip: bool = False  # left-right, half of the time
    cutout: Annotated[int, Field(ge=0)] = 0  # pixels; side of a square of zeros at a random place
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0,), min_length=1, strict=False)
    """Sides of the images as shares of their own, in as many equal parts of the training: small ones are quick."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the encoder; auto: bfloat16 where it is quick
    compile: bool = False


class RefitSpec(TomlSection):
    """The head fitted anew on frozen training features; see training/refit.py."""

    head: Literal["lda", "mda", "auto"] = "mda"  # auto: the one under which held-out images are likelier
    features: Literal["output", "pooled"] = "pooled"
    dim: Annotated[int, Field(ge=1)] | None = None  # principal components of the pooled features
    components: Annotated[int, Field(ge=1, le=64)] | Literal["bic"] = 1
    max_components: Annotated[int, Field(ge=1, le=64)] = 5  # tried by bic
    covariance: Covariance = "full"
    tied: bool = False  # mda: one covariance for all components of all classes
    shrinkage: Literal["ledoit-wolf"] | Annotated[float, Field(ge=0, le=1)] = 0.0  # of a covariance that all share
    restarts: Annotated[int, Field(ge=1)] = 3
    ridge: Positive = Field(
        default=1e-3, validation_alias=AliasChoices("ridge", "variance_floor")
    )  # the latter in old runs
    """Added to every variance, as a share of the features' mean variance."""

    @model_validator(mode="after")
    def _dim_goes_with_pooled(self) -> "RefitSpec":
        if (self.features == "pooled") != (self.dim is not None):
            raise ValueError(f"refit.dim must be given for pooled features and only there, got {self.dim}")
        if self.head == "lda" and self.components != 1:
            raise ValueError(f"refit.components must be 1 for the head lda, got {self.components}")
        if self.head == "auto" and self.components == 1:
            raise ValueError("refit.components must be bic or at least 2 for the head auto, got 1")
        return self

    @model_validator(mode="after")
    def _only_a_shared_covariance_is_shrunk(self) -> "RefitSpec":
        if self.shrinkage != 0 and self.head != "lda" and not self.tied:
            raise ValueError(f"refit.shrinkage must be 0 for the head {self.head} without tied, got {self.shrinkage}")
        return self


class CalibrationSpec(TomlSection):
    """The temperature of the posterior: fitted on the validation split, or a number that another run has found.

    `cross-fit` fits it on the training images, each judged by a head that the refit has fitted without it; the features
    must not have been learned from them. `found_for` is the digest of the recipe that the number is of
    (training/digests.py); no other trains with it.
    """

    temperature: Positive | Literal["fit", "cross-fit"] = "fit"
    found_for: str | None = None


class Recipe(TomlSection):
    """A named training."""

    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataSpec
    encoder: EncoderSpec
    head: HeadSpec
    loss: LossSpec
    fit: FitSpec
    refit: RefitSpec | None = None
    calibration: CalibrationSpec | None = None

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "Recipe":
        self._require_loss_of_head()
        head, loss = self.head.kind, self.loss.kind
        if self.head.components > 1 and not HEADS[head].has_components:
            raise ValueError(f"head.components must be 1 for the head {head}, got {self.head.components}")
        if loss == "fisher" and self.refit is None:
            raise ValueError("loss.kind fisher must go with a [refit], which fits the head, got none")
        if self.calibration and self.calibration.temperature == "fit" and self.data.validation == 0:
            raise ValueError("calibration.temperature fit must have a validation split, got data.validation = 0")
        if (
            self.calibration
            and self.calibration.temperature == "cross-fit"
            and (self.learns_features or not self.refit)
        ):
            raise ValueError(
                "calibration.temperature cross-fit must go with a [refit] on features that are not learned"
            )
        if self.encoder.kind != "six-conv" and self.fit.scales != (1.0,):
            raise ValueError(f"fit.scales must be [1.0] for the encoder {self.encoder.kind}, got {[*self.fit.scales]}")
        if self.encoder.kind == "mlp" and not self.encoder.hidden:
            raise ValueError("encoder.hidden must name at least one layer for the encoder mlp, got none")
        return self

    def _require_loss_of_head(self) -> None:
        loss, head = self.loss.kind, HEADS[self.head.kind]
        if loss in LOSSES_OF_COMPONENTS and not head.has_components:
            fitting = [name for name, kind in HEADS.items() if kind.has_components]
        elif loss in LOSSES_OF_DENSITIES and not head.has_density:
            fitting = [name for name, kind in HEADS.items() if kind.has_density]
        elif loss in LOSSES_OF_MARGINS and head.has_density:
            fitting = [name for name, kind in HEADS.items() if not kind.has_density]
        else:
            return
        raise ValueError(f"loss.kind {loss} must go with the head {' or '.join(fitting)}, got {self.head.kind}")

    @property
    def learns_features(self) -> bool:
        """Whether the encoder has weights that training changes."""
        kind, dim = self.encoder.kind, self.encoder.dim
        return dim is not None if kind == "linear" or kind in BACKBONES else kind != "none"

    @model_validator(mode="after")
    def _epochs_suit_the_encoder(self) -> "Recipe":
        if not self.learns_features and self.loss.kind == "fisher":
            raise ValueError(f"loss.kind fisher must go with an encoder that learns, got {self.encoder.kind}")
        if self.fit.epochs == 0 and self.learns_features:
            raise ValueError("fit.epochs must be greater than or equal to 1, got 0")
        if self.fit.epochs == 0 and self.refit is None:
            raise ValueError("fit.epochs must be greater than or equal to 1 without a [refit], got 0")
        return self

    @model_validator(mode="after")
    def _backbone_suits(self) -> "Recipe":
        kind, dim, fit, data = self.encoder.kind, self.encoder.dim, self.fit, self.data
        if kind not in BACKBONES:
            return self
        if dim is not None and dim > BACKBONES[kind].dim:
            raise ValueError(f"encoder.dim must be at most {BACKBONES[kind].dim} for the encoder {kind}, got {dim}")
        if fit.crop_padding or fit.flip or fit.cutout:
            rule = f"fit.crop_padding, flip and cutout must be 0, false and 0 for the encoder {kind}"
            raise ValueError(f"{rule}, got {fit.crop_padding}, {str(fit.flip).lower()} and {fit.cutout}")
        if data.name == "folder" and (data.size, data.channels) != (SIDE, 3):
            got = f"{data.size} and {data.channels}"
            raise ValueError(f"data.size and data.channels must be {SIDE} and 3 for the encoder {kind}, got {got}")
        return self


class Notes(TomlSection):
    """What is known of a recipe and decides nothing: no run, bundle or comparison of recipes has them.

    Attributes:
        published: accuracy in percent in the paper or notebook that the recipe is from.
        differs: in what the published figure is of something else than this recipe's encoder, head and test split.
        remark: where the recipe falls short of what was published, in words; figures are in the records.
    """

    published: str = ""
    differs: str = ""
    remark: str = ""


class _WithNotes(TomlSection):
    notes: Notes = Notes()


class RecipeError(ValueError):
    """A recipe that cannot be found or breaks the schema."""


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(file.stem for file in RECIPES_FOLDER.glob("*.toml"))


def load_recipe(name_or_file: str, overrides: Iterable[str] = ()) -> tuple[str, Recipe]:
    """Read a recipe by name or path and apply `key=value` overrides (`fit.lr=0.01`).

    Returns:
        The recipe's name (the file's stem) and the recipe.

    Raises:
        RecipeError: naming the key, the value and the choices.
    """
    file = Path(name_or_file) if name_or_file.endswith(".toml") else RECIPES_FOLDER / f"{name_or_file}.toml"
    tree, _ = _read(file, name_or_file)
    for override in overrides:
        _apply(tree, override)
    return file.stem, parse_recipe(tree)


def notes_of(name: str) -> Notes:
    """The notes of a recipe that comes with the project; empty ones for any other."""
    return _read(RECIPES_FOLDER / f"{name}.toml", name)[1] if name in recipe_names() else Notes()


def _read(file: Path, asked: str) -> tuple[dict[str, Any], Notes]:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        notes = _WithNotes.model_validate({"notes": tree.pop("notes", {})}).notes
    except FileNotFoundError as exc:
        choices = ", ".join(recipe_names())
        raise RecipeError(f"recipe must be a TOML file or one of {choices}, got {asked!r}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{file} must be valid TOML, got {exc}") from exc
    except ValidationError as exc:
        raise RecipeError(problems(exc, _WithNotes)) from exc
    return tree, notes


def parse_recipe(tree: dict[str, Any]) -> Recipe:
    """Check a tree of plain values against the schema."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as exc:
        raise RecipeError(problems(exc, Recipe)) from exc


def recorded_recipe(tree: dict[str, Any]) -> Recipe:
    """The recipe that a bundle or a run holds.

    One without `data.split_seed` is from when the recipe's seed decided the test split too.
    """
    return parse_recipe({**tree, "data": {"split_seed": tree.get("seed", 0), **tree.get("data", {})}})


def read_recorded(file: Path) -> Recipe:
    """The recipe that a run holds, in its own TOML file."""
    return recorded_recipe(_read(file, str(file))[0])


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML, defaults included."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"an override must look like fit.lr=0.01, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    *sections, leaf = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{key} must be a key of the recipe, got a path through the value {section!r}")
    tree[leaf] = value
