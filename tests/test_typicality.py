"""Typicality: the Mahalanobis distance of pooled features at length one, by scikit-learn's covariance."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from training.principal import Rows, moments_of, principal_components, project
from training.typicality import LEAST_SHRINKAGE, Typicality, fit_typicality

FloatArray = NDArray[np.float64]
NONE = torch.zeros(0)


def pooled_features(per_class: int, dim: int = 20, seed: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
    """Features after a ReLU, of three classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    means = np.random.default_rng(9).normal(size=(3, dim))
    return np.maximum(means[labels] + rng.normal(size=(3 * per_class, dim)), 0), labels


def rows(features: FloatArray) -> Rows:
    return Rows(features, np.arange(len(features)))


def scores(typicality: Typicality, pooled: FloatArray, features: FloatArray | None = None) -> FloatArray:
    parts = [torch.from_numpy(pooled).float(), NONE if features is None else torch.from_numpy(features).float()]
    return typicality(*parts, NONE).double().numpy()  # type: ignore[no-any-return]


def unit(features: FloatArray) -> FloatArray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("per_class", [6, 400])
def test_score_is_minus_the_squared_distance_to_the_nearest_class(per_class: int) -> None:
    (features, labels), (new, _) = pooled_features(per_class), pooled_features(50, seed=1)
    means = np.stack([unit(features)[labels == c].mean(0) for c in range(3)])
    covariance, share = ledoit_wolf(unit(features) - means[labels], assume_centered=True)
    assert share > LEAST_SHRINKAGE
    deviations = unit(new)[:, None] - means
    distances = np.einsum("ncd,de,nce->nc", deviations, np.linalg.inv(covariance), deviations)

    found = scores(fit_typicality(rows(features), labels, 3), new)

    np.testing.assert_allclose(found, -distances.min(1), rtol=1e-4)


def test_length_of_pooled_features_does_not_count() -> None:
    features, labels = pooled_features(50)
    typicality = fit_typicality(rows(features), labels, 3)

    np.testing.assert_allclose(scores(typicality, 7 * features), scores(typicality, features), rtol=1e-4)


def test_features_in_principal_directions_give_the_score_of_these_directions() -> None:
    features, labels = pooled_features(100)
    features = unit(features) * 20**0.5
    new = unit(pooled_features(50, seed=1)[0]) * 20**0.5
    seen = principal_components(moments_of(rows(features)), 8)
    covariance_of = fit_typicality(rows(features), labels, 3, seen.weights)
    means = np.stack([unit(features)[labels == c].mean(0) for c in range(3)])
    covariance, _ = ledoit_wolf(unit(features) - means[labels], assume_centered=True)
    inside = seen.weights @ covariance @ seen.weights.T
    outside = (np.trace(covariance) - np.trace(inside)) / 12  # of one variance in the twelve other directions
    deviations = (unit(new)[:, None] - means) @ seen.weights.T
    rest = np.square(unit(new) - unit(features).mean(0)).sum(1) - np.square(
        (unit(new) - unit(features).mean(0)) @ seen.weights.T
    ).sum(1)
    distances = np.einsum("ncd,de,nce->nc", deviations, np.linalg.inv(inside), deviations)

    found = scores(covariance_of, new, project(rows(new), seen))

    assert covariance_of.directions is None
    np.testing.assert_allclose(found, -(distances.min(1) + rest / outside), rtol=1e-3)


def test_strangers_are_less_typical() -> None:
    features, labels = pooled_features(200)
    typicality = fit_typicality(rows(features), labels, 3)
    flat = np.ones((5, 20))

    assert scores(typicality, flat).max() < np.quantile(scores(typicality, pooled_features(200, seed=1)[0]), 0.05)


def test_an_image_without_any_feature_has_a_score() -> None:
    features, labels = pooled_features(50)

    found = scores(fit_typicality(rows(features), labels, 3), np.zeros((1, 20)))

    assert np.isfinite(found).all()
