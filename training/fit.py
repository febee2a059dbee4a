"""The training loop: the only one.

The images lie on the device as uint8 and are augmented there, a batch at a time. All randomness of an epoch comes from
(seed, epoch), so a run that resumes after any epoch goes on exactly as it would have.

Measured on 2 CPU cores (AVX-512 BF16), six-conv on 28 x 28: 168 images/s in float32, 486 with bfloat16 autocast and
channels_last.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from training import progress
from training.classifier import Classifier
from training.data import augment, batches, shrink
from training.losses import build_loss
from training.recipe import FitSpec, Recipe
from training.run import Run

CHECK_EVERY = 16  # steps between looks at the loss: each look waits for the device


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, channels, H, W) and labels int64 (N,) on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def fit(classifier: Classifier, recipe: Recipe, train: Labelled, validation: Labelled, run: Run) -> None:
    """Train `classifier` in place, from the run's newest checkpoint if it has one.

    Raises:
        DivergedError: naming the epoch and the step; the checkpoint of the last good epoch stays.
    """
    spec = recipe.fit
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if spec.compile:
        classifier.encoder.compile()
    steps = math.ceil(len(train) / spec.batch_size)
    optimizer = build_optimizer(classifier, spec)
    schedule = build_schedule(optimizer, spec, steps)
    first = _restore(run, classifier, optimizer, schedule)
    with progress.steps(run.name, spec.epochs * steps, (first - 1) * steps) as bar:
        for epoch in range(first, spec.epochs + 1):
            started = time.perf_counter()
            lr = optimizer.param_groups[0]["lr"]
            metrics = {"epoch": epoch, **_one_epoch(classifier, recipe, train, optimizer, schedule, epoch, bar)}
            seconds = time.perf_counter() - started
            metrics |= {"lr": lr, "seconds": round(seconds, 3), "images_per_s": round(len(train) / seconds, 1)}
            seen = Labelled(shrink(validation.images, _scale(spec, epoch)), validation.labels)
            metrics |= score(classifier, seen)
            _require_finite_weights(classifier, epoch, steps, spec.lr)
            run.log_epoch(metrics)
            run.save_checkpoint(
                {
                    "epoch": epoch,
                    "classifier": classifier.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
            )
            bar.line(_in_words(metrics, spec.epochs))


def build_optimizer(classifier: nn.Module, spec: FitSpec) -> torch.optim.Optimizer:
    """The optimiser that the recipe names, over every trainable parameter."""
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, weight_decay=spec.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, spec: FitSpec, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate per step over the whole training."""
    total = spec.epochs * steps
    if spec.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=spec.lr, total_steps=total)
    if spec.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


@torch.no_grad()
def log_joints_of(classifier: Classifier, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Log-joints (N, C) of uint8 images (N, channels, H, W), in evaluation mode, a batch at a time."""
    classifier.eval()
    return torch.cat([classifier(batch).log_joints for batch in images.split(batch_size)])


def score(classifier: Classifier, data: Labelled, batch_size: int = 1024) -> dict[str, float]:
    """Accuracy and NLL of a validation split, as keys of an epoch's metrics; nothing if the split is empty."""
    if not len(data):
        return {}
    log_joints = log_joints_of(classifier, data.images, batch_size)
    return {
        "validation_accuracy": (log_joints.argmax(1) == data.labels).float().mean().item(),
        "validation_nll": F.cross_entropy(log_joints, data.labels).item(),
    }


def _one_epoch(
    classifier: Classifier,
    recipe: Recipe,
    train: Labelled,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    bar: progress.Steps,
) -> dict[str, float]:
    """One pass over the images; mean loss and accuracy over its batches."""
    spec = recipe.fit
    epoch_seed = recipe.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(epoch_seed)
    torch.manual_seed(epoch_seed)  # dropout
    classifier.train()
    scale = _scale(spec, epoch)
    losses, right, seen = [], torch.zeros((), dtype=torch.long, device=train.images.device), 0
    for step, batch in enumerate(batches(len(train), spec.batch_size, generator), start=1):
        picked = batch.to(train.images.device)
        labels = train.labels[picked]
        images = train.images.index_select(0, picked)  # on a CPU many times faster than images[picked]
        images = augment(
            images, crop_padding=spec.crop_padding, flip=spec.flip, cutout=spec.cutout, generator=generator
        )
        images = shrink(images, scale)
        loss, log_joints = _loss(classifier, recipe, images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        right += (log_joints.argmax(1) == labels).sum()
        seen += len(batch)
        if step % CHECK_EVERY == 0:
            _require_finite(losses[-CHECK_EVERY:], step - CHECK_EVERY, epoch, spec.lr)
        bar.advance()
    _require_finite(losses, 0, epoch, spec.lr)
    return {"loss": torch.stack(losses).mean().item(), "train_accuracy": right.item() / seen}


def _scale(spec: FitSpec, epoch: int) -> float:
    """The size of an epoch's images as a share of their own; the last epoch always has the last size."""
    return spec.scales[-1 - (spec.epochs - epoch) * len(spec.scales) // spec.epochs]


def _loss(classifier: Classifier, recipe: Recipe, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The batch's loss and log-joints; the encoder may run in bfloat16, the head is always in float32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.fit.precision == "bfloat16"):
        features = classifier.encoder(classifier.normalise(images))
    scores = classifier.head(features.float())
    return build_loss(recipe.loss.kind, recipe.loss.weight)(scores, labels), scores.log_joints.detach()


def _require_finite(losses: list[Tensor], before: int, epoch: int, lr: float) -> None:
    """Refuse a loss that is no number; `losses` are those after step `before` of the epoch."""
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        first = int((~finite).int().argmax())
        got, step = losses[first].item(), before + first + 1
        raise _diverged(f"loss must be finite, got {got} in epoch {epoch}, step {step}", lr)


def _require_finite_weights(classifier: nn.Module, epoch: int, step: int, lr: float) -> None:
    """The loss of an epoch's last step says nothing of the weights that the step made."""
    bad = [name for name, value in classifier.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise _diverged(f"weights must be finite, got others in {bad[0]} after epoch {epoch}, step {step}", lr)


def _diverged(what: str, lr: float) -> DivergedError:
    return DivergedError(
        f"{what}: the last good checkpoint is kept; try a smaller fit.lr than {lr:g} or fit.precision = float32"
    )


def _restore(
    run: Run,
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Load the run's checkpoint, if any; the epoch to begin with."""
    state = run.load_checkpoint()
    if state is None:
        return 1
    classifier.load_state_dict(state["classifier"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["epoch"]) + 1


def _in_words(metrics: dict[str, Any], epochs: int) -> str:
    words = [f"epoch {metrics['epoch']:>3}/{epochs}", f"loss {metrics['loss']:8.4f}"]
    words.append(f"train {metrics['train_accuracy']:7.2%}")
    if "validation_accuracy" in metrics:
        words.append(f"validation {metrics['validation_accuracy']:7.2%}")
    return "  ".join([*words, f"{metrics['images_per_s']:,.0f} images/s"])
