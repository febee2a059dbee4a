"""Heads, judged by torch.distributions, scikit-learn, hand-worked cases and numerical gradients."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from training.gaussians import Gaussians
from training.heads import DiscriminantHead, LinearHead, build_head, lda_head, mda_head, simplex_vertices
from training.recipe import HeadSpec

COVARIANCES = ["spherical", "diagonal", "full"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scrambled(head: DiscriminantHead, seed: int = 0) -> DiscriminantHead:
    """Every parameter drawn anew, so that no term of the formula is zero by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def features_of(dim: int, count: int = 12, seed: int = 1) -> Tensor:
    return 2 * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def covariance_matrices(gaussians: Gaussians) -> Tensor:
    """The covariances, (M or 1, D, D), built from the parameters alone."""
    dim = gaussians.means.shape[1]
    if gaussians.covariance == "full":
        factor = torch.tril(gaussians.lower, -1) + torch.diag_embed(torch.exp(gaussians.log_scale))
        return factor @ factor.transpose(1, 2)
    variances = torch.exp(gaussians.log_variance)
    return torch.stack([torch.diag(v.expand(dim)) for v in variances])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_joints_of_lda_are_log_priors_plus_normal_log_densities(covariance: str) -> None:
    head = scrambled(lda_head(4, 3, covariance))
    z = features_of(3)
    normals = MultivariateNormal(head.gaussians.means, covariance_matrices(head.gaussians))
    expected = head.prior_logits.softmax(0).log() + normals.log_prob(z[:, None])

    scores = head(z)

    torch.testing.assert_close(scores.log_joints + head.log_density_constant, expected)
    torch.testing.assert_close(scores.component_log_joints[:, :, 0], scores.log_joints)
    assert scores.component_log_joints.shape == (12, 4, 1)
    assert scores.features is z


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_joints_of_mda_are_log_priors_plus_mixture_log_densities(covariance: str) -> None:
    head = scrambled(mda_head(4, 3, 2, covariance))
    z = features_of(3)
    matrices = covariance_matrices(head.gaussians).reshape(4, 2, 3, 3)
    normals = MultivariateNormal(head.gaussians.means.reshape(4, 2, 3), matrices)
    mixtures = MixtureSameFamily(Categorical(logits=head.weight_logits), normals)
    priors, weights = head.prior_logits.softmax(0), head.weight_logits.softmax(1)

    scores = head(z)

    constant = head.log_density_constant
    torch.testing.assert_close(scores.log_joints + constant, priors.log() + mixtures.log_prob(z[:, None]))
    torch.testing.assert_close(
        scores.component_log_joints + constant,
        (priors[:, None] * weights).log() + normals.log_prob(z[:, None, None]),
    )


def test_log_density_is_a_true_density() -> None:
    """The exponential of logsumexp over classes, constant included, integrates to one."""
    head = scrambled(mda_head(3, 1, 2))
    line = torch.linspace(-40, 40, 200_001)[:, None]

    density = (head(line).log_joints.logsumexp(1) + head.log_density_constant).exp()

    assert torch.trapezoid(density, line[:, 0]).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_posterior_of_lda_is_that_of_scikit_learn_at_equal_parameters(covariance: str) -> None:
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1, 2], [40, 60, 100])
    z = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4)) + 2 * rng.normal(size=(3, 4))[labels]
    reference = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(z, labels)
    matrix = reference.covariance_
    if covariance != "full":  # give scikit-learn the structured covariance and let it solve for the weights
        matrix = np.diag(np.diag(matrix)) if covariance == "diagonal" else np.eye(4) * np.trace(matrix) / 4
        reference.coef_ = np.linalg.solve(matrix, reference.means_.T).T
        reference.intercept_ = -0.5 * np.diag(reference.means_ @ reference.coef_.T) + np.log(reference.priors_)
    given = {"full": matrix[None], "diagonal": matrix.diagonal()[None].copy(), "spherical": matrix[:1, 0]}[covariance]
    head = lda_head(3, 4, covariance)
    with torch.no_grad():
        head.gaussians.means.copy_(torch.from_numpy(reference.means_))
        head.gaussians.set_covariance(torch.from_numpy(given))
        head.prior_logits.copy_(torch.from_numpy(reference.priors_).log())

    posterior = head(torch.from_numpy(z)).log_joints.softmax(1)

    np.testing.assert_allclose(posterior.detach(), reference.predict_proba(z), rtol=1e-8, atol=1e-12)


def test_two_classes_on_a_line_by_hand() -> None:
    """N(0, 4) with prior 3/4 against N(3, 4) with prior 1/4, at z = 1."""
    head = lda_head(2, 1)
    with torch.no_grad():
        head.gaussians.means.copy_(torch.tensor([[0.0], [3.0]]))
        head.gaussians.log_variance.fill_(math.log(4))
        head.prior_logits.copy_(torch.tensor([math.log(3), 0.0]))

    scores = head(torch.tensor([[1.0]]))

    first = math.log(3 / 4) - 1 / 8 - math.log(2)
    second = math.log(1 / 4) - 4 / 8 - math.log(2)
    assert scores.log_joints[0].tolist() == pytest.approx([first, second])
    odds = 3 * math.exp(3 / 8)
    assert scores.log_joints.softmax(1)[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    assert head.log_density_constant == pytest.approx(-math.log(math.sqrt(2 * math.pi)))


def test_two_components_on_a_line_by_hand() -> None:
    """One class of 1/5 N(-1, 1) + 4/5 N(1, 9) beside a far one, at z = 2."""
    head = mda_head(2, 1, 2)
    with torch.no_grad():
        head.gaussians.means.copy_(torch.tensor([[-1.0], [1.0], [90.0], [91.0]]))
        head.gaussians.log_variance.copy_(torch.tensor([[1.0], [9.0], [1.0], [1.0]]).log())
        head.weight_logits.copy_(torch.tensor([[0.0, math.log(4)], [0.0, 0.0]]))

    scores = head(torch.tensor([[2.0]]))

    near, wide = 0.5 * 0.2 * math.exp(-4.5), 0.5 * 0.8 * math.exp(-1 / 18) / 3
    assert scores.component_log_joints[0, 0].exp().tolist() == pytest.approx([near, wide])
    assert scores.log_joints[0, 0].exp().item() == pytest.approx(near + wide)
    responsibilities = scores.component_log_joints.softmax(2)[0, 0]
    assert responsibilities[1].item() == pytest.approx(wide / (near + wide))


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (3, 2), (10, 9), (10, 16)])
def test_simplex_vertices_are_six_apart_and_centred(classes: int, dim: int) -> None:
    vertices = simplex_vertices(classes, dim)

    assert vertices.shape == (classes, dim)
    apart = torch.cdist(vertices, vertices)[~torch.eye(classes, dtype=torch.bool)]
    torch.testing.assert_close(apart, torch.full_like(apart, 6))
    torch.testing.assert_close(vertices.mean(0), torch.zeros(dim))
    assert not vertices[:, classes - 1 :].any()


def test_simplex_needs_a_dimension_less_than_classes() -> None:
    with pytest.raises(ValueError, match=r"^dim must be at least classes - 1 = 9 for a simplex, got 8$"):
        simplex_vertices(10, 8)
    with pytest.raises(ValueError, match=r"classes - 1 = 9 for a simplex, got 8"):
        lda_head(10, 8, simplex=True)


def test_simplex_means_never_move() -> None:
    for head in (lda_head(4, 5, simplex=True), mda_head(4, 5, 3, simplex=True)):
        before = head.gaussians.means.clone()
        optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)

        head(features_of(5)).log_joints.sum().backward()
        optimizer.step()

        assert torch.equal(head.gaussians.means, before)
        assert head.gaussians.means.grad is None
        assert head.gaussians.log_variance.grad.any()


def test_means_of_the_simplex_variants() -> None:
    torch.manual_seed(0)
    vertices = simplex_vertices(4, 5)

    torch.testing.assert_close(lda_head(4, 5, simplex=True).gaussians.means.data, vertices)
    of_components = mda_head(4, 5, 500, simplex=True).gaussians.means.unflatten(0, (4, 500))
    torch.testing.assert_close(of_components.mean(1), vertices, atol=0.15, rtol=0)


def test_class_means_start_about_six_apart() -> None:
    torch.manual_seed(0)

    means = lda_head(400, 30).gaussians.means.detach()

    assert means.std().item() == pytest.approx(6 / math.sqrt(2 * 30), rel=0.02)
    assert torch.pdist(means).mean().item() == pytest.approx(6, rel=0.02)


def test_component_means_start_a_tenth_of_the_scale_around_the_class_mean() -> None:
    torch.manual_seed(0)

    means = mda_head(200, 30, 20).gaussians.means.detach().unflatten(0, (200, 20))

    scale = 6 / math.sqrt(2 * 30)
    assert means.std(1).mean().item() == pytest.approx(0.1 * scale, rel=0.05)
    assert means.mean(1).std().item() == pytest.approx(scale, rel=0.05)


def test_heads_start_with_unit_covariance_and_equal_weights() -> None:
    for covariance in COVARIANCES:
        head = mda_head(3, 2, 4, covariance)

        torch.testing.assert_close(
            head.gaussians.cholesky().detach(), torch.eye(2).expand(len(head.gaussians.cholesky()), 2, 2)
        )
        torch.testing.assert_close(head.log_weights().detach().exp(), torch.full((3, 4), 1 / 12))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_set_covariance_and_cholesky_are_inverse_to_each_other(covariance: str, shared: bool) -> None:
    count = 1 if shared else 5
    factors = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(3))
    full = factors @ factors.mT + 0.1 * torch.eye(3)
    variances = full.diagonal(dim1=1, dim2=2)
    given, expected = {
        "spherical": (variances[:, 0], torch.diag_embed(variances[:, :1].expand(-1, 3))),
        "diagonal": (variances, torch.diag_embed(variances)),
        "full": (full, full),
    }[covariance]
    gaussians = Gaussians(torch.zeros(5, 3), covariance, shared=shared)

    gaussians.set_covariance(given)

    lower = gaussians.cholesky().detach()
    torch.testing.assert_close(lower @ lower.mT, expected)
    assert torch.equal(lower, lower.tril())
    assert (lower.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_whitening_turns_the_gaussian_into_a_standard_normal(covariance: str) -> None:
    gaussians = scrambled(mda_head(2, 3, 2, covariance)).gaussians
    whitening, half_log_det = gaussians.whitening()
    covariances = covariance_matrices(gaussians)
    if covariance == "full":
        whitened = whitening @ covariances @ whitening.mT
    else:
        whitened = whitening[:, :, None] * covariances * whitening[:, None, :]

    torch.testing.assert_close(whitened, torch.eye(3).expand(4, 3, 3))
    torch.testing.assert_close(half_log_det, 0.5 * torch.logdet(covariances))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("simplex", [False, True])
@pytest.mark.parametrize("kind", ["lda", "mda"])
def test_gradients_of_generative_heads(kind: str, simplex: bool, covariance: str) -> None:
    spec = HeadSpec(kind=kind, components=2 if kind == "mda" else 1, covariance=covariance, simplex=simplex)
    torch.manual_seed(0)
    head = scrambled(build_head(spec, classes=3, dim=2))

    assert_gradients(head, features_of(2, 4))


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_linear_heads_are_a_weight_vector_and_a_bias_a_class(kind: str) -> None:
    torch.manual_seed(0)
    head = build_head(HeadSpec(kind=kind), classes=3, dim=2)
    z = features_of(2, 4)

    scores = head(z)

    assert isinstance(head, LinearHead)
    assert head.kind == kind
    torch.testing.assert_close(scores.log_joints, z @ head.linear.weight.T + head.linear.bias)
    assert scores.component_log_joints is None
    assert_gradients(head, z)


def assert_gradients(head: torch.nn.Module, z: Tensor) -> None:
    """Analytic against numerical gradients, in the features and in every trainable parameter."""
    names = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    values = [dict(head.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def log_joints(features: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (features,)).log_joints

    assert torch.autograd.gradcheck(log_joints, (z.clone().requires_grad_(), *values))
