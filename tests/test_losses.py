"""Losses, judged by their formulas written out, by torch's own losses and by numerical gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training import losses
from training.heads import Scores
from training.recipe import LossKind

CLASSES = 4
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
OF_LOG_JOINTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "nll": losses.nll,
    "dnll": lambda d, y: losses.dnll(d, y, 0.3),
    "logistic": losses.logistic,
    "poisson_nll": losses.poisson_nll,
    "lda": losses.lda,
    "hinge": losses.hinge,
    "hinge_loop": losses.hinge_loop,
}
KINDS = ["cross-entropy", "nll", "dnll", "em-dnll", "logistic", "poisson-nll", "lda", "hinge", "fisher"]


def log_joints(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(LABELS), CLASSES, generator=generator, dtype=dtype) - 1


def component_log_joints(components: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(LABELS), CLASSES, components, generator=generator, dtype=torch.float64) - 1


def mean_over_images(of_one: Callable[[list[float], int], float], delta: Tensor) -> float:
    rows = zip(delta.tolist(), LABELS.tolist(), strict=True)
    return sum(of_one(row, label) for row, label in rows) / len(LABELS)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy_of_one(delta: list[float], label: int) -> float:
    return -math.log(math.exp(delta[label]) / sum(math.exp(d) for d in delta))


def dnll_of_one(delta: list[float], label: int) -> float:
    return -delta[label] + 0.3 * sum(math.exp(d) for d in delta)


def logistic_of_one(delta: list[float], label: int) -> float:
    others = [d for c, d in enumerate(delta) if c != label]
    return -math.log(sigmoid(delta[label])) - sum(math.log(sigmoid(-d)) for d in others)


def hinge_of_one(delta: list[float], label: int) -> float:
    others = [d for c, d in enumerate(delta) if c != label]
    return sum(max(0.0, 1 - delta[label] + d) for d in others) / len(delta)


@pytest.mark.parametrize(
    ("name", "of_one"),
    [
        ("cross_entropy", cross_entropy_of_one),
        ("nll", lambda delta, label: -delta[label]),
        ("dnll", dnll_of_one),
        ("logistic", logistic_of_one),
        ("hinge", hinge_of_one),
        ("hinge_loop", hinge_of_one),
    ],
)
def test_loss_is_the_mean_of_its_formula(name: str, of_one: Callable[[list[float], int], float]) -> None:
    delta = log_joints()

    assert OF_LOG_JOINTS[name](delta, LABELS).item() == pytest.approx(mean_over_images(of_one, delta))


def test_poisson_nll_is_torchs_on_one_hot_counts() -> None:
    delta = log_joints()
    counts = functional.one_hot(LABELS, CLASSES).double()

    expected = functional.poisson_nll_loss(delta, counts, log_input=True)

    torch.testing.assert_close(losses.poisson_nll(delta, LABELS), expected)


def test_poisson_nll_is_dnll_of_weight_one_over_the_number_of_classes() -> None:
    delta = log_joints()

    torch.testing.assert_close(losses.poisson_nll(delta, LABELS), losses.dnll(delta, LABELS, 1.0) / CLASSES)


def test_gradient_of_the_lda_loss_is_rates_minus_one_hot() -> None:
    delta = log_joints().requires_grad_()

    (gradient,) = torch.autograd.grad(losses.lda(delta, LABELS), delta)

    expected = (delta.exp() - functional.one_hot(LABELS, CLASSES)) / len(LABELS)
    torch.testing.assert_close(gradient, expected.detach())
    torch.testing.assert_close(losses.lda(delta, LABELS), losses.dnll(delta, LABELS, 1.0))


def test_logistic_is_the_sum_of_binary_cross_entropies() -> None:
    delta = log_joints()
    targets = functional.one_hot(LABELS, CLASSES).double()

    expected = functional.binary_cross_entropy(delta.sigmoid(), targets, reduction="sum") / len(LABELS)

    torch.testing.assert_close(losses.logistic(delta, LABELS), expected)


def test_hinge_is_torchs_multi_margin_loss() -> None:
    for seed in range(5):
        margins = log_joints(seed)

        expected = functional.multi_margin_loss(margins, LABELS)

        torch.testing.assert_close(losses.hinge(margins, LABELS), expected)
        torch.testing.assert_close(losses.hinge_loop(margins, LABELS), expected)


def test_em_dnll_of_one_component_is_dnll() -> None:
    delta = component_log_joints(1)

    torch.testing.assert_close(losses.em_dnll(delta, LABELS, 0.3), losses.dnll(delta[:, :, 0], LABELS, 0.3))


def test_em_dnll_is_the_expectation_over_components_plus_the_penalty() -> None:
    delta = component_log_joints(3)
    expected = 0.0
    for image, label in zip(delta.tolist(), LABELS.tolist(), strict=True):
        total = sum(math.exp(d) for d in image[label])
        expected -= sum(math.exp(d) / total * d for d in image[label])
        expected += 0.3 * sum(math.exp(d) for of_class in image for d in of_class)

    assert losses.em_dnll(delta, LABELS, 0.3).item() == pytest.approx(expected / len(LABELS))


def test_gradient_of_em_dnll_holds_responsibilities_constant() -> None:
    """With r constant: (-r_k [c = y] + weight exp(delta_ck)) / N; the exact gradient of the value would differ."""
    delta = component_log_joints(3).requires_grad_()

    (gradient,) = torch.autograd.grad(losses.em_dnll(delta, LABELS, 0.3), delta)

    expected = 0.3 * delta.detach().exp()
    for n, label in enumerate(LABELS):
        expected[n, label] -= delta.detach()[n, label].softmax(0)
    torch.testing.assert_close(gradient, expected / len(LABELS))


def test_em_dnll_and_nll_have_the_same_gradient_without_penalty() -> None:
    """The EM bound touches the log-likelihood where its responsibilities were taken (Fisher's identity)."""
    delta = component_log_joints(3).requires_grad_()

    (of_bound,) = torch.autograd.grad(losses.em_dnll(delta, LABELS, 0.0), delta)
    (of_likelihood,) = torch.autograd.grad(losses.nll(delta.logsumexp(2), LABELS), delta)

    torch.testing.assert_close(of_bound, of_likelihood)


def test_fisher_by_hand() -> None:
    """Classes {0, 2} and {9, 11} on a line: within 4, between 2 * 4.5^2 * 2 = 81."""
    features = torch.tensor([[0.0], [2.0], [9.0], [11.0]], dtype=torch.float64)

    assert losses.fisher(features, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(-81 / 4)


def test_fisher_ignores_scale_and_shift_and_classes_that_are_not_in_the_batch() -> None:
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 3, 3, 1, 1, 1])
    expected = losses.fisher(features, labels)

    torch.testing.assert_close(losses.fisher(7 * features - 3, labels), expected)
    torch.testing.assert_close(losses.fisher(features, torch.tensor([2, 2, 2, 5, 5, 0, 0, 0])), expected)


def test_fisher_stays_finite_when_every_class_is_one_point() -> None:
    features = torch.tensor([[0.0], [0.0], [1.0], [1.0]], requires_grad=True)

    loss = losses.fisher(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()

    assert loss.isfinite()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("name", OF_LOG_JOINTS)
def test_gradients_of_losses_on_log_joints(name: str) -> None:
    delta = log_joints(seed=3).requires_grad_()

    assert torch.autograd.gradcheck(lambda d: OF_LOG_JOINTS[name](d, LABELS), (delta,))


def test_gradient_of_fisher() -> None:
    features = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda z: losses.fisher(z, LABELS), (features,))


def test_penalty_goes_on_as_a_tangent_above_its_cap() -> None:
    cap = losses.EXP_CAP
    delta = torch.tensor([[cap + 3.0, 0.0], [cap - 1.0, 0.0]], dtype=torch.float64, requires_grad=True)

    loss = losses.dnll(delta, torch.tensor([1, 1]), 1.0)
    (gradient,) = torch.autograd.grad(loss, delta)

    rates = [4 * math.exp(cap) + 1, math.exp(cap - 1) + 1]
    assert loss.item() == pytest.approx(sum(rates) / 2)
    assert gradient[:, 0].tolist() == pytest.approx([math.exp(cap) / 2, math.exp(cap - 1) / 2])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_finite_on_extreme_scores(kind: str) -> None:
    extremes = torch.tensor([-1e4, 1e4, 0.0, 1e4])
    rows = torch.stack([extremes, -extremes, extremes.roll(1), extremes * 0 - 1e4, extremes * 0 + 1e4])
    components = rows[:, :, None].repeat(1, 1, 2).requires_grad_()  # (5, 4, 2)
    features = rows.clone().requires_grad_()
    scores = Scores(features, components[:, :, 0], components)
    loss = losses.build_loss(kind, 0.1)

    for labels in (torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 3, 2, 1])):
        value = loss(scores, labels)
        gradients = torch.autograd.grad(value, (features, components), allow_unused=True)

        assert value.isfinite()
        assert any(gradient is not None for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_build_loss_knows_every_loss_of_the_recipes() -> None:
    delta = component_log_joints(2)
    features = log_joints(7)
    scores = Scores(features, delta.logsumexp(2), delta)
    expected = {
        "cross-entropy": losses.cross_entropy(scores.log_joints, LABELS),
        "nll": losses.nll(scores.log_joints, LABELS),
        "dnll": losses.dnll(scores.log_joints, LABELS, 0.3),
        "em-dnll": losses.em_dnll(delta, LABELS, 0.3),
        "logistic": losses.logistic(scores.log_joints, LABELS),
        "poisson-nll": losses.poisson_nll(scores.log_joints, LABELS),
        "lda": losses.lda(scores.log_joints, LABELS),
        "hinge": losses.hinge(scores.log_joints, LABELS),
        "fisher": losses.fisher(features, LABELS),
    }

    assert set(expected) == set(KINDS) == set(LossKind.__args__)
    for kind, value in expected.items():
        torch.testing.assert_close(losses.build_loss(kind, 0.3)(scores, LABELS), value)


def test_em_dnll_refuses_a_head_without_components() -> None:
    scores = Scores(log_joints(), log_joints(), None)

    with pytest.raises(ValueError, match=r"^em-dnll must be used with an mda head, got a head without components$"):
        losses.build_loss("em-dnll", 1.0)(scores, LABELS)
