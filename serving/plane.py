"""The feature plane of a model: where held-out images and the components lie, and where another image does.

    plane = Plane.read(bundle.plane)        # bundle.plane is None if it was exported without
    plane.places(outputs["features"])       # (N, 2)

The features are projected to the two directions in which those of the training images vary most. The file,
`plane.npz`, holds numbers alone and no image. It answers nothing, so `Bundle.digest` leaves it out.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.errors import BundleError

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """A plane in the space of D features, with n held-out images and the K components of each of C classes.

    Attributes:
        axes: the plane's two directions, float32 (2, D).
        centre: what is its origin, float32 (D,).
        points: places of held-out images, float32 (n, 2).
        labels: of the same images, int64 (n,).
        means: of the components' training images in the plane, float32 (C, K, 2). K is 0 for a head without
            responsibilities.
        covariances: of the same, float32 (C, K, 2, 2).
        weights: each component's share of its class's training images, float32 (C, K). One that no image belongs to
            has weight 0, and nothing else of it means anything.
    """

    axes: Numbers
    centre: Numbers
    points: Numbers
    labels: NDArray[np.int64]
    means: Numbers
    covariances: Numbers
    weights: Numbers

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read it from a bundle's file.

        Raises:
            BundleError: if the file holds something else.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                plane = cls(**{field.name: arrays[field.name] for field in fields(cls)})
            plane._require_shapes()
        except (KeyError, ValueError, OSError) as exc:
            raise BundleError(f"{file} must hold the feature plane of a model, got {exc}") from exc
        return plane

    def write(self, file: Path) -> None:
        """Write it to a bundle's file."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(file, **arrays)

    def places(self, features: NDArray[np.floating]) -> Numbers:
        """Where images lie in the plane: features (N, D) to (N, 2)."""
        places: Numbers = ((features - self.centre) @ self.axes.T).astype(np.float32)
        return places

    def _require_shapes(self) -> None:
        dim, count = self.centre.size, self.labels.size
        classes, components = self.weights.shape if self.weights.ndim == 2 else (0, 0)
        shapes = {
            "axes": (2, dim),
            "centre": (dim,),
            "points": (count, 2),
            "labels": (count,),
            "means": (classes, components, 2),
            "covariances": (classes, components, 2, 2),
            "weights": (classes, components),
        }
        for name, shape in shapes.items():
            array: NDArray[Any] = getattr(self, name)
            dtype = np.int64 if name == "labels" else np.float32
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} of {array.dtype} {array.shape}, which must be {np.dtype(dtype)} {shape} beside the others"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} that are not all finite")
        if count and not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise ValueError(f"labels from {self.labels.min()} to {self.labels.max()} of {classes} classes")
