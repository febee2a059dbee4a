"""Recipes: everything that decides a training, as a TOML file that a schema checks.

    recipe = load_recipe("digits-mda", overrides=["fit.epochs=3"])

`recipe` is frozen; `dump_recipe` writes it out again with every default spelled out.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from training.backbones import LEAST_SIDE, backbone_of
from training.datasets import DATASETS
from training.encoders import EncoderKind
from training.fit_spec import AUGMENTATION, FINE_TUNING, FitSpec, Positive, Share
from training.gaussians import Covariance
from training.heads import HEADS
from training.refit_spec import CalibrationSpec, RefitSpec
from training.schema import TomlSection, one_of, problems

RECIPES_FOLDER = Path(__file__).parent / "recipes"

LossKind = Literal["cross-entropy", "nll", "dnll", "em-dnll", "logistic", "poisson-nll", "lda", "hinge", "fisher"]
LOSSES_OF_COMPONENTS, LOSSES_OF_DENSITIES = ("em-dnll",), ("nll", "dnll", "poisson-nll", "lda")
LOSSES_OF_MARGINS = ("hinge",)


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
    frozen: bool = True  # a backbone stays as it is; others always learn
    dim: Annotated[int, Field(ge=1)] | None = None  # of the projection; without one the pooled features as they are
    width: Annotated[int, Field(ge=1)] = 64
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), strict=False)
    dropout: Share = 0.0
    side: Annotated[int, Field(ge=LEAST_SIDE, le=1024)] | None = None  # pixels; of a backbone's images, its own if none
    power: bool = False  # a backbone's pooled features become their square roots, of one length (training/power.py)


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

    @model_validator(mode="before")
    @classmethod
    def _folder_is_read_in_the_backbones_size(cls, tree: Any) -> Any:
        """A folder's images have the size that the backbone takes, unless the recipe says which."""
        data, encoder = (tree.get(name) if isinstance(tree, dict) else None for name in ("data", "encoder"))
        if not isinstance(data, dict) or not isinstance(encoder, dict) or data.get("name") != "folder":
            return tree
        backbone, side = backbone_of(str(encoder.get("kind"))), encoder.get("side")
        if backbone is None or not (side is None or isinstance(side, int)):
            return tree
        return {**tree, "data": {"size": backbone.side_seen(side), **data}}

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "Recipe":
        self._require_loss_of_head()
        head, loss = self.head.kind, self.loss.kind
        if self.head.components > 1 and not HEADS[head].has_components:
            raise ValueError(f"head.components must be 1 for the head {head}, got {self.head.components}")
        if loss == "fisher" and self.refit is None:
            raise ValueError("loss.kind fisher must go with a [refit], which fits the head, got none")
        if self.calibration is not None:
            self.calibration.require_suitable(self.refit, self.data.validation, learns_features=self.learns_features)
        if self.fit.scales != (1.0,) and not self._takes_scales:
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
    def held_out_share(self) -> float:
        """Share of the images outside the test split that neither weights nor validation see."""
        return self.calibration.share if self.calibration is not None else 0.0

    @property
    def fine_tunes(self) -> bool:
        """Whether a pretrained backbone learns."""
        return backbone_of(self.encoder.kind) is not None and not self.encoder.frozen

    @property
    def _takes_scales(self) -> bool:
        """Whether the encoder learns from images of any size."""
        backbone = backbone_of(self.encoder.kind)
        return self.encoder.kind == "six-conv" if backbone is None else self.fine_tunes and backbone.any_side

    @property
    def learns_features(self) -> bool:
        """Whether the encoder has weights that training changes."""
        if self.fine_tunes:
            return True
        kind, dim = self.encoder.kind, self.encoder.dim
        return dim is not None if kind == "linear" or backbone_of(kind) is not None else kind != "none"

    @model_validator(mode="after")
    def _epochs_suit_the_encoder(self) -> "Recipe":
        if not self.learns_features and self.loss.kind == "fisher":
            raise ValueError(f"loss.kind fisher must go with an encoder that learns, got {self.encoder.kind}")
        if self.fit.epochs == 0 and self.learns_features:
            raise ValueError("fit.epochs must be greater than or equal to 1, got 0")
        if self.fit.epochs == 0 and self.refit is None:
            raise ValueError("fit.epochs must be greater than or equal to 1 without a [refit], got 0")
        return self

    def _require_no_keys_of_backbones(self) -> "Recipe":
        kind, side, power = self.encoder.kind, self.encoder.side, self.encoder.power
        if side is not None or power:
            rule = f"encoder.side and encoder.power must be left out for the encoder {kind}, which is no backbone"
            raise ValueError(f"{rule}, got {side} and {str(power).lower()}")
        return self

    @model_validator(mode="after")
    def _fine_tuning_suits(self) -> "Recipe":
        kind = self.encoder.kind
        if backbone_of(kind) is not None:
            if self.encoder.frozen:
                advice = "encoder.frozen = false fine-tunes it"
                self.fit.require_defaults((*AUGMENTATION, *FINE_TUNING), f"{kind} while it is frozen", advice)
        elif not self.encoder.frozen:
            raise ValueError(f"encoder.frozen must be true for the encoder {kind}, which is no backbone, got false")
        else:
            self.fit.require_defaults(FINE_TUNING, kind, "it is for fine-tuning a backbone")
        return self

    @model_validator(mode="after")
    def _backbone_suits(self) -> "Recipe":
        kind, dim, data = self.encoder.kind, self.encoder.dim, self.data
        if (backbone := backbone_of(kind)) is None:
            return self._require_no_keys_of_backbones()
        side = backbone.side_seen(self.encoder.side)
        if dim is not None and dim > backbone.dim:
            raise ValueError(f"encoder.dim must be at most {backbone.dim} for the encoder {kind}, got {dim}")
        if data.name == "folder" and (data.size, data.channels) != (side, 3):
            got = f"{data.size} and {data.channels}"
            raise ValueError(f"data.size and data.channels must be {side} and 3 for the encoder {kind}, got {got}")
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
