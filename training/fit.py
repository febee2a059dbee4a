"""The training loop: the only one.

    for epoch in fit(classifier, recipe, train, validation):
        print(epoch.metrics)

The images lie on the device as uint8 and are augmented there, a batch at a time. All randomness of an epoch comes from
(seed, epoch), so a training that goes on from the state after any epoch ends exactly as it would have.

Measured on 2 CPU cores (AVX-512 BF16), six-conv on 28 x 28: 168 images/s in float32, 486 with bfloat16 autocast and
channels_last.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.augment import augment, random_resized_crop, resized, shrink
from training.classifier import Classifier
from training.data import batch_count, batches
from training.depthwise import StridedDepthwiseInFloat32
from training.devices import TrainingPrecision, choose_precision
from training.finetune import keep_statistics, parameter_groups, thaw
from training.fit_spec import FitSpec
from training.images import Labelled
from training.losses import build_loss
from training.recipe import Recipe

CHECK_EVERY = 16  # steps between looks at the loss: each look waits for the device

TrainingState = dict[str, Any]


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch leaves.

    Attributes:
        metrics: epoch, loss, train_accuracy, lr, seconds, images_per_s and, if there are validation images, theirs.
        state: what `fit` goes on from. It is the training's own weights: save them before the next epoch changes them.
    """

    metrics: dict[str, Any]
    state: TrainingState


def fit(
    classifier: Classifier,
    recipe: Recipe,
    train: Labelled,
    validation: Labelled,
    state: TrainingState | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Epoch]:
    """Train `classifier` in place, an epoch whenever the next one is asked for.

    Where the recipe averages weights, the averages are measured, and the classifier has them after the last epoch.

    Args:
        classifier: on the images' device.
        recipe: what `fit`, `loss` and `seed` say, and whether a backbone is fine-tuned.
        train: what to learn from; images of another size than the classifier's are brought to it a batch at a time.
        validation: what to measure after each epoch, in the classifier's size; may be empty.
        state: of an epoch, to go on after it; from the beginning if left out.
        on_step: called after each step.

    Raises:
        DivergedError: naming the epoch and the step.
    """
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.fit.compile:
        classifier.encoder.compile()
    loop = _loop_of(classifier, recipe, train)
    first = 1 if state is None else loop.restore(state)
    for epoch in range(first, recipe.fit.epochs + 1):
        metrics = {"epoch": epoch, **_timed_epoch(loop, train, epoch, on_step)}
        seen = Labelled(shrink(validation.images, _scale(recipe.fit, epoch)), validation.labels)
        metrics |= validation_metrics(loop.kept, seen)
        _require_finite_weights(classifier, epoch, batch_count(len(train), recipe.fit.batch_size), recipe.fit.lr)
        yield Epoch(metrics, loop.state(epoch))
    if loop.average is not None:
        classifier.load_state_dict(loop.kept.state_dict())


def build_optimizer(classifier: nn.Module, spec: FitSpec, trunk: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimiser that the recipe names, over every trainable parameter, with rates for the blocks of a `trunk`."""
    parameters: Any = [p for p in classifier.parameters() if p.requires_grad]
    if trunk is not None:
        parameters = parameter_groups(classifier, trunk, spec)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, weight_decay=spec.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, spec: FitSpec, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate per step over the whole training, whose epochs have `steps` steps."""
    total = spec.epochs * steps
    if spec.schedule == "one-cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=total)
    if spec.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


@torch.no_grad()
def log_joints_of(classifier: Classifier, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Log-joints (N, C) of uint8 images (N, channels, H, W), in evaluation mode, a batch at a time."""
    classifier.eval()
    return torch.cat([classifier(batch).log_joints for batch in images.split(batch_size)])


def validation_metrics(classifier: Classifier, data: Labelled, batch_size: int = 1024) -> dict[str, float]:
    """Accuracy and NLL of a validation split, as keys of an epoch's metrics; nothing if the split is empty."""
    if not len(data):
        return {}
    log_joints = log_joints_of(classifier, data.images, batch_size)
    return {
        "validation_accuracy": (log_joints.argmax(1) == data.labels).float().mean().item(),
        "validation_nll": F.cross_entropy(log_joints, data.labels).item(),
    }


@dataclass(frozen=True)
class _Loop:
    """What changes from step to step, and how a step is made."""

    classifier: Classifier
    recipe: Recipe
    precision: TrainingPrecision
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None

    @property
    def kept(self) -> Classifier:
        """The classifier that the training is for: that of the averaged weights, if the recipe averages."""
        averaged: Any = self.classifier if self.average is None else self.average.module
        kept: Classifier = averaged
        return kept

    def begin(self, epoch: int) -> None:
        """Put the classifier into training mode, as far as it learns in an epoch."""
        self.classifier.train()
        if self.recipe.fine_tunes:
            thaw(self.classifier.encoder.trunk, self.recipe.fit, epoch)
            keep_statistics(self.classifier.encoder.trunk, self.recipe.fit)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch; its loss, and how many of its images were recognised."""
        loss, log_joints = self._loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.classifier)
        return loss.detach(), (log_joints.argmax(1) == labels).sum()

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's loss and log-joints; the encoder may run in bfloat16, the head is always in float32."""
        device, quick = images.device.type, self.precision == "bfloat16"
        strided = StridedDepthwiseInFloat32() if quick and device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=quick), strided:
            features = self.classifier.encoder(self.classifier.normalise(images))
        scores = self.classifier.head(features.float())
        spec = self.recipe.loss
        return build_loss(spec.kind, spec.weight)(scores, labels), scores.log_joints.detach()

    def state(self, epoch: int) -> TrainingState:
        """What `restore` takes."""
        return {
            "epoch": epoch,
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **({} if self.average is None else {"average": self.average.state_dict()}),
        }

    def restore(self, state: TrainingState) -> int:
        """Take the state after an epoch; the next epoch."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        return int(state["epoch"]) + 1


def _loop_of(classifier: Classifier, recipe: Recipe, train: Labelled) -> _Loop:
    precision = choose_precision(recipe.fit.precision, train.images.device).precision
    trunk = classifier.encoder.trunk if recipe.fine_tunes else None
    if trunk is not None:
        thaw(trunk, recipe.fit, recipe.fit.epochs)  # the optimiser takes what learns at the end
    optimizer = build_optimizer(classifier, recipe.fit, trunk)
    schedule = build_schedule(optimizer, recipe.fit, batch_count(len(train), recipe.fit.batch_size))
    return _Loop(classifier, recipe, precision, optimizer, schedule, _average_of(classifier, recipe.fit))


def _average_of(classifier: Classifier, spec: FitSpec) -> AveragedModel | None:
    """An exponential moving average of weights and batch norm's statistics, if the recipe asks for one."""
    if spec.ema_decay == 0:
        return None
    return AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(spec.ema_decay), use_buffers=True)


def _timed_epoch(loop: _Loop, train: Labelled, epoch: int, on_step: Callable[[], None]) -> dict[str, float]:
    """One pass over the images: mean loss and accuracy over its batches, its first learning rate and its time."""
    started = time.perf_counter()
    lr = loop.optimizer.param_groups[0]["lr"]
    means = _one_epoch(loop, train, epoch, on_step)
    seconds = time.perf_counter() - started
    return {**means, "lr": lr, "seconds": round(seconds, 3), "images_per_s": round(len(train) / seconds, 1)}


def _one_epoch(loop: _Loop, train: Labelled, epoch: int, on_step: Callable[[], None]) -> dict[str, float]:
    spec = loop.recipe.fit
    epoch_seed = loop.recipe.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(epoch_seed)
    torch.manual_seed(epoch_seed)  # dropout
    loop.begin(epoch)
    losses, right, seen = [], torch.zeros((), dtype=torch.long, device=train.images.device), 0
    for step, positions in enumerate(batches(len(train), spec.batch_size, generator), start=1):
        batch = _batch(train, positions, spec, generator)
        loss, recognised = loop.step(_in_size(batch.images, loop, epoch, generator), batch.labels)
        losses.append(loss)
        right += recognised
        seen += len(batch)
        if step % CHECK_EVERY == 0:
            _require_finite(losses[-CHECK_EVERY:], step - CHECK_EVERY, epoch, spec.lr)
        on_step()
    _require_finite(losses, 0, epoch, spec.lr)
    return {"loss": torch.stack(losses).mean().item(), "train_accuracy": right.item() / seen}


def _batch(train: Labelled, positions: Tensor, spec: FitSpec, generator: torch.Generator) -> Labelled:
    """The images at `positions`, augmented."""
    picked = positions.to(train.images.device)
    images = train.images.index_select(0, picked)  # on a CPU many times faster than images[picked]
    images = augment(images, crop_padding=spec.crop_padding, flip=spec.flip, cutout=spec.cutout, generator=generator)
    return Labelled(images, train.labels[picked])


def _in_size(images: Tensor, loop: _Loop, epoch: int, generator: torch.Generator) -> Tensor:
    """Images in the classifier's size, less the epoch's scale: random boxes or the whole of them."""
    _, height, width = loop.classifier.architecture.image_shape
    scale, crop_scale = _scale(loop.recipe.fit, epoch), loop.recipe.fit.crop_scale
    if crop_scale is None:
        return shrink(resized(images, (height, width)), scale)
    size = max(4, round(height * scale)), max(4, round(width * scale))
    return random_resized_crop(images, size, scale=crop_scale, generator=generator)


def _scale(spec: FitSpec, epoch: int) -> float:
    """The size of an epoch's images as a share of their own; the last epoch always has the last size."""
    return spec.scales[-1 - (spec.epochs - epoch) * len(spec.scales) // spec.epochs]


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
