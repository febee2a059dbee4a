"""The schema of a recipe's [refit] and [calibration]: what is fitted once the features are learned."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from training.fit_spec import Positive, Share
from training.gaussians import Covariance
from training.schema import TomlSection

Shrinkage = Literal["ledoit-wolf", "cross-fit"] | Annotated[float, Field(ge=0, le=1)]


class RefitSpec(TomlSection):
    """The head fitted anew on frozen training features; see training/refit.py."""

    head: Literal["lda", "mda", "auto"] = "mda"  # auto: the one under which held-out images are likelier
    features: Literal["output", "pooled"] = "pooled"
    dim: Annotated[int, Field(ge=1)] | None = None  # principal components of the pooled features
    components: Annotated[int, Field(ge=1, le=64)] | Literal["bic"] = 1
    max_components: Annotated[int, Field(ge=1, le=64)] = 5  # tried by bic
    covariance: Covariance = "full"
    tied: bool = False  # mda: one covariance for all components of all classes
    shrinkage: Shrinkage = 0.0
    """Share of the identity in a covariance that all classes have in common; cross-fit: the one that suits LDA best."""
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
    """What is learned of images that the weights have not seen: the temperature, and what answers are compared with.

    The temperature is fitted on images that are held out, or a number that another run has found. `cross-fit` fits it
    on the training images, each judged by a head that the refit has fitted without it; the features must not have been
    learned from them. `components` is the temperature of responsibilities, which refits of bootstrap samples give
    (training/component_calibration.py), or a number; it concerns only heads with several components. `found_for` is the
    digest of the recipe that numbers are of (training/digests.py); no other trains with them.

    `share` of the images outside the test split is held out. A fitted temperature and the scale of the typicality
    (training/typicality.py) get one half of them, and answers are compared with the others (serving/held_out.py).
    Without a share the temperature is fitted on the validation split, and answers are compared with none; with
    `cross-fit` with all training images.
    """

    temperature: Positive | Literal["fit", "cross-fit"] = "fit"
    components: Positive | Literal["bootstrap", "none"] = "none"
    found_for: str | None = None
    share: Share = 0.0

    @model_validator(mode="after")
    def _cross_fit_holds_out_none(self) -> "CalibrationSpec":
        if self.temperature == "cross-fit" and self.share:
            rule = "calibration.share must be 0 for the temperature cross-fit, which judges all training images"
            raise ValueError(f"{rule}, got {self.share}")
        return self

    def require_suitable(self, refit: RefitSpec | None, validation: float, *, learns_features: bool) -> None:
        """Refuse what does not go with the refit, the share of validation images and the encoder.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        if self.temperature == "fit" and validation == 0 and self.share == 0:
            rule = "calibration.temperature fit must have calibration.share or a validation split"
            raise ValueError(f"{rule}, got data.validation = 0")
        if self.temperature == "cross-fit" and (learns_features or refit is None):
            raise ValueError(
                "calibration.temperature cross-fit must go with a [refit] on features that are not learned"
            )
        if self.components != "none" and refit is None:
            raise ValueError(f"calibration.components {self.components} must go with a [refit], got none")
