"""A new kind of head needs a class, a row of HEADS and a recipe; training, export and serving know nothing of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_samples import FOLDER_DATA, small_recipe, write_digit_folder

from serving.predictor import Predictor
from training.data import Sources
from training.export import export
from training.heads import HEADS, Head, HeadKind, Scores
from training.recipe import RecipeError
from training.run import Run
from training.train import train


class CauchyHead(Head):
    """A multivariate Cauchy density a class, of unit scale: -(D + 1) / 2 log(1 + |z - mu|^2) but for a constant."""

    outputs = ("posterior", "log_density", "features")

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.kind, self.classes, self.dim = "cauchy", classes, dim
        self.means = nn.Parameter(torch.randn(classes, dim))

    def forward(self, features: Tensor) -> Scores:
        squared = (features[:, None] - self.means).square().sum(2)
        return Scores(features, -(self.dim + 1) / 2 * squared.log1p(), None)

    def served(self, temperature: float, component_temperature: float, class_biases: Tensor) -> nn.Module:
        return ServedCauchy(self, temperature)


class ServedCauchy(nn.Module):
    def __init__(self, head: CauchyHead, temperature: float):
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        log_joints = self.head(features).log_joints
        return (log_joints / self.temperature).softmax(1), log_joints.logsumexp(1), features


@pytest.fixture
def cauchy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "cauchy", HeadKind(lambda classes, dim, _: CauchyHead(classes, dim), has_density=True))


@pytest.mark.usefixtures("cauchy")
def test_new_head_is_trained_exported_and_served(tmp_path: Path) -> None:
    sources = Sources(folder=write_digit_folder(tmp_path / "digits"))
    recipe = small_recipe(
        data=FOLDER_DATA, head={"kind": "cauchy"}, loss={"kind": "nll"}, fit={"epochs": 20, "batch_size": 16}
    )
    run = Run.create("cauchy", recipe, "one", tmp_path / "runs")
    train(run, sources, torch.device("cpu"))

    bundle = export(run, sources, tmp_path / "store" / "cauchy" / "1")

    answers = Predictor(bundle).predict([file.read_bytes() for file in sorted((tmp_path / "digits" / "4").iterdir())])
    head = run.load_classifier().head
    assert bundle.manifest.head.model_dump() == {"kind": "cauchy", "classes": 3, "dim": 3, "components": 1}
    assert bundle.manifest.metrics["accuracy"] > 0.8
    assert np.mean([answer["label"] == "4" for answer in answers]) > 0.8
    assert all("responsibilities" not in answer for answer in answers)
    distance = (torch.tensor(Predictor(bundle).infer(np.zeros((1, 1, 8, 8), np.uint8))["features"]) - head.means).norm(
        dim=1
    )
    density = (-2 * (1 + distance.square()).log()).logsumexp(0).item()
    assert Predictor(bundle).infer(np.zeros((1, 1, 8, 8), np.uint8))["log_density"][0] == pytest.approx(
        density, rel=1e-5
    )


@pytest.mark.usefixtures("cauchy")
def test_rules_of_losses_follow_from_what_the_head_has() -> None:
    with pytest.raises(RecipeError, match=r"^loss.kind hinge must go with the head softmax or svm, got cauchy$"):
        small_recipe(head={"kind": "cauchy"}, loss={"kind": "hinge"})
    with pytest.raises(RecipeError, match=r"^head.kind must be one of .* 'svm' or 'cauchy', got 'qda'$"):
        small_recipe(head={"kind": "qda"})
