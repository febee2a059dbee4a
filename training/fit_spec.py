"""What a recipe says of the training loop: its section [fit]."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.schema import TomlSection

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]

FINE_TUNING = ("freeze_epochs", "last_blocks", "frozen_blocks", "layer_decay", "batch_norm", "train_depthwise")
AUGMENTATION = ("crop_padding", "flip", "cutout", "crop_scale")


class FitSpec(TomlSection):
    """The training loop; the keys of `FINE_TUNING` concern the blocks of a backbone that is not frozen."""

    epochs: Count  # 0: the [refit] alone, on an encoder that learns nothing
    batch_size: Annotated[int, Field(ge=2)] = 256
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-3
    momentum: Share = 0.9  # sgd only; one-cycle sets its own
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    ema_decay: Share = 0.0  # of the exponential moving average of the weights, which is what is kept; 0: none
    crop_padding: Count = 0  # pixels; random crops of the padded image
    flip: bool = False  # left-right, half of the time
    cutout: Count = 0  # pixels; side of a square of zeros at a random place
    crop_scale: Annotated[float, Field(gt=0, le=1)] | None = None  # least share of the area of random resized crops
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(1.0,), min_length=1, strict=False)
    """Sides of the images as shares of their own, in as many equal parts of the training: small ones are quick."""
    freeze_epochs: Count = 0  # the first epochs, in which only `last_blocks`, projection and head learn
    last_blocks: Count = 1
    frozen_blocks: Count = 0  # the first blocks, which never learn: they cost most, being those of the largest maps
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor of the learning rate per block towards the images
    batch_norm: Literal["train", "eval"] = "train"  # statistics of the batch, or the pretrained ones for ever
    train_depthwise: bool = True  # kernels of one channel each, whose gradients are slow on CPUs
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the encoder; auto: bfloat16 where it is quick
    compile: bool = False

    @model_validator(mode="after")
    def _phases_fit_together(self) -> "FitSpec":
        if self.freeze_epochs > self.epochs:
            raise ValueError(f"fit.freeze_epochs must be at most fit.epochs ({self.epochs}), got {self.freeze_epochs}")
        return self

    def require_defaults(self, keys: tuple[str, ...], encoder: str, advice: str) -> None:
        """Refuse keys that mean nothing to an encoder.

        Args:
            keys: such as `FINE_TUNING` or `AUGMENTATION`.
            encoder: which one it is, in words.
            advice: what to do instead.

        Raises:
            ValueError: if one of the keys is not its default.
        """
        for key in keys:
            default, value = type(self).model_fields[key].default, getattr(self, key)
            if value != default:
                rule = f"fit.{key} must be {_as_toml(default)} for the encoder {encoder}"
                raise ValueError(f"{rule}, got {_as_toml(value)}: {advice}")


def _as_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "left out" if value is None else str(value)
