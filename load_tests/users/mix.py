"""The schema of a mix: which kinds of requests, of which models, how often; `mix.toml` is one.

mix = read_mix(Path("load_tests/mix.toml"), models=["flowers12-mda"])
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, create_model, field_validator

from load_tests.asked.kinds import Kind
from training.schema import TomlSection, problems

DEFAULT_MIX = Path(__file__).parents[1] / "mix.toml"

Weight = Annotated[int, Field(ge=0)]
_FIELDS: Any = {kind.name: (Weight, 0) for kind in Kind}
Kinds: Any = create_model("Kinds", __base__=TomlSection, **_FIELDS)


class Mix(TomlSection):
    """Weights of models by name, and of kinds of requests by theirs."""

    models: Mapping[str, Weight]
    kinds: Kinds

    @field_validator("models", "kinds")
    @classmethod
    def _weighs_something(cls, section: Any, info: ValidationInfo) -> Any:
        weights = section.model_dump(exclude_unset=True) if isinstance(section, Kinds) else dict(section)
        if not any(weights.values()):
            raise ValueError(f"{info.field_name} must have a weight above 0, got {weights or 'none'}")
        return section

    @property
    def weights(self) -> dict[str, int]:
        """Of the kinds that are asked."""
        return {name: weight for name, weight in dict(self.kinds).items() if weight}


class FileError(ValueError):
    """A TOML file of a load test that cannot be read or breaks its schema."""


def read_mix(file: Path = DEFAULT_MIX, models: Sequence[str] = ()) -> Mix:
    """Read a mix; `models`, if there are any, take the place of those in the file, each with weight 1.

    Raises:
        FileError: naming file, key, rule and value.
    """
    tree = read_toml(file, "--mix")
    if models:
        tree["models"] = dict.fromkeys(models, 1)
    try:
        return Mix.model_validate(tree)
    except ValidationError as exc:
        raise FileError(f"{file}: {problems(exc, Mix)}") from exc


def read_toml(file: Path, option: str) -> dict[str, Any]:
    """A TOML file that an option names.

    Raises:
        FileError: if it is not there or not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise FileError(f"{option} must be a file that can be read, got {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise FileError(f"{option} must be a file of valid TOML, got {file}: {exc}") from exc
