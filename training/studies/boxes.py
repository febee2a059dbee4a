"""Squares on a canvas, and two networks that say where the square is: what the study box-regression is made of.

A box is (x of the centre, y of the centre, width, height) in shares of the canvas.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CANVAS, SQUARE, BORDER = 64, 16, 3  # pixels
INSIDE, NOISE = 0.4, 0.05  # gray, of 1
EPOCHS, BATCH_SIZE, LEARNING_RATE = 25, 64, 1e-3


def squares(corners: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Canvases with a bright square that is darker inside, (N, 1, 64, 64) in 0..1.

    Args:
        corners: x and y of the upper left corner in pixels, int64 (N, 2); what lies outside the canvas is cut off.
        generator: of Gaussian noise; without one there is none.
    """
    pixels = torch.arange(CANVAS)
    x, y = pixels[None] - corners[:, :1], pixels[None] - corners[:, 1:]  # pixels right of, below the corner: (N, 64)
    square = _within(y, 0)[:, :, None] & _within(x, 0)[:, None, :]
    inside = _within(y, BORDER)[:, :, None] & _within(x, BORDER)[:, None, :]
    canvas = torch.where(inside, INSIDE, square.float())[:, None]
    if generator is not None:
        canvas = (canvas + NOISE * torch.randn(canvas.shape, generator=generator)).clamp(0, 1)
    return canvas


def boxes_of(corners: Tensor) -> Tensor:
    """Boxes (N, 4) of whole squares at corners (N, 2)."""
    centres = (corners + SQUARE / 2) / CANVAS
    return torch.cat([centres, torch.full_like(centres, SQUARE / CANVAS)], 1)


def training_set(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Canvases and boxes, corners even over 0..47 as in the notebook."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(CANVAS - SQUARE, (count, 2), generator=generator)
    return squares(corners, generator), boxes_of(corners)


def mlp() -> nn.Sequential:
    """4096-512-256-4."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(CANVAS**2, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 4),
        nn.Sigmoid(),
    )  # fmt: skip


def cnn() -> nn.Sequential:
    """Three convolutions of 16, 32 and 64 channels, each pooled, and two layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, 4), nn.Sigmoid(),
    )  # fmt: skip


def train_boxes(model: nn.Module, images: Tensor, boxes: Tensor, epochs: int, seed: int) -> float:
    """Train a model in place with Adam on the mean squared error; the last epoch's mean loss.

    Raises:
        ValueError: if the loss is no number.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    loss_sum = 0.0
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            loss = F.mse_loss(model(images[batch]), boxes[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        loss_sum = torch.stack(losses).mean().item()
    if not math.isfinite(loss_sum):
        raise ValueError(f"the loss of the boxes must be finite, got {loss_sum}")
    return loss_sum


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) with boxes (N, 4), row by row; 0 where both are empty."""
    low = _corner(predicted, -1).maximum(_corner(truth, -1))
    high = _corner(predicted, 1).minimum(_corner(truth, 1))
    overlap = (high - low).clamp(min=0).prod(1)
    union = predicted[:, 2:].prod(1) + truth[:, 2:].prod(1) - overlap
    return torch.where(union > 0, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def grid_of_corners(step: int, limit: int) -> Tensor:
    """Every corner with x and y in 0, step, ... up to `limit`, (N, 2)."""
    places = np.arange(0, limit + 1, step)
    return torch.from_numpy(np.stack(np.meshgrid(places, places), -1).reshape(-1, 2))


def _corner(boxes: Tensor, side: int) -> Tensor:
    """The upper left (-1) or lower right (1) corners of boxes, (N, 2)."""
    return boxes[:, :2] + side * boxes[:, 2:] / 2


def _within(offset: Tensor, border: int) -> Tensor:
    return (offset >= border) & (offset < SQUARE - border)
