"""Does a predicted box follow its square? An MLP against a convolutional network on synthetic squares, three seeds.

The notebook's test has four squares, shifted by 16 pixels to the right and down. Two of them leave the canvas in part,
and there its true box is that of a whole square at the edge, which no longer is where the pixels are; they are reported
apart. The grid asks the same of 81 squares that stay whole. Every place is within those of the training.
"""

from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from training.digests import digest_of
from training.figures import GREEN, ORANGE, new_figure, save_figure
from training.progress import track
from training.studies import boxes
from training.studies.study import Outcome, Setting

CORNERS = torch.tensor([[8, 8], [36, 8], [8, 36], [30, 30]])  # the notebook's
SHIFT = 16  # pixels
LAST = boxes.CANVAS - boxes.SQUARE  # the last corner of a whole square
TRAINING_IMAGES, SEEDS = 3000, 3
REGRESSORS = {"MLP": boxes.mlp, "CNN": boxes.cnn}
PLACES = {"notebook": CORNERS, "grid": boxes.grid_of_corners(4, LAST - SHIFT)}
CASES = (
    "notebook, original", "notebook, shifted", "notebook, shifted, whole squares", "notebook, shifted, cut squares",
    "grid, original", "grid, shifted",
)  # fmt: skip


def parameters(seeds: int = SEEDS, epochs: int = boxes.EPOCHS, images: int = TRAINING_IMAGES) -> dict[str, Any]:
    """What decides the figures, as plain values."""
    places = {name: corners.tolist() for name, corners in PLACES.items()}
    squares = {"canvas": boxes.CANVAS, "square": boxes.SQUARE, "border": boxes.BORDER}
    shades = {"inside": boxes.INSIDE, "noise": boxes.NOISE}
    steps = {"epochs": epochs, "batch_size": boxes.BATCH_SIZE, "learning_rate": boxes.LEARNING_RATE}
    networks = {name: [list(p.shape) for p in build().parameters()] for name, build in REGRESSORS.items()}
    return {"seeds": seeds, "images": images, "shift": SHIFT, "places": places, "networks": networks,
            **squares, **shades, **steps}  # fmt: skip


def run(setting: Setting, seeds: int = SEEDS, epochs: int = boxes.EPOCHS, images: int = TRAINING_IMAGES) -> Outcome:
    """Train both models with every seed, measure the mean intersection over union and draw the last seed's boxes."""
    found: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in REGRESSORS}
    models: dict[str, nn.Module] = {}
    for seed in track(range(seeds), "box-regression: seeds"):
        canvases, truth = (part.to(setting.device) for part in boxes.training_set(images, seed))
        for name, build in REGRESSORS.items():
            torch.manual_seed(seed)
            models[name] = build().to(setting.device)
            boxes.train_boxes(models[name], canvases, truth, epochs, seed)
            for case, value in mean_overlaps(models[name].cpu()).items():
                found[name][case].append(round(value, 4))
    means = _means(found)
    figures = {"seeds": seeds, "epochs": epochs, "training_images": images, "iou": means, "iou_by_seed": found}
    picture = save_figure(_draw(models), setting.out / "box-regression.png")
    made_from = digest_of(parameters(seeds, epochs, images))
    return Outcome(figures, _table(means, seeds), made_from, (picture,), "mean IoU; grid: 81 squares that stay whole")


def mean_overlaps(model: nn.Module) -> dict[str, float]:
    """Mean intersection over union per case, without noise."""
    four = [_iou_at(model, CORNERS, shift) for shift in (0, SHIFT)]
    cut = (CORNERS + SHIFT > LAST).any(1)
    many = [_iou_at(model, PLACES["grid"], shift) for shift in (0, SHIFT)]
    parts = (four[0], four[1], four[1][~cut], four[1][cut], many[0], many[1])
    return {case: float(part.mean()) for case, part in zip(CASES, parts, strict=True)}


def truth_at(corners: Tensor, shift: int) -> Tensor:
    """The boxes that count as right, as the notebook has them: a square beyond the edge counts as at the edge."""
    return boxes.boxes_of((corners + shift).clamp(max=LAST))


@torch.no_grad()
def predict(model: nn.Module, corners: Tensor, shift: int) -> Tensor:
    """Boxes (N, 4) for squares at `corners`, moved right and down; what leaves the canvas is cut off."""
    predicted: Tensor = model.eval()(boxes.squares(corners + shift))
    return predicted


def _iou_at(model: nn.Module, corners: Tensor, shift: int) -> Tensor:
    return boxes.iou(predict(model, corners, shift), truth_at(corners, shift))


def _means(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {case: round(sum(values) / len(values), 4) for case, values in cases.items()}
        for name, cases in found.items()
    }


def _table(means: dict[str, dict[str, float]], seeds: int) -> Table:
    table = Table(f"mean IoU of {seeds} seeds", *means, box=None)
    for case in CASES:
        table.add_row(case, *[f"{means[name][case]:.3f}" for name in means])
    return table


def _draw(models: dict[str, nn.Module]) -> Any:
    """The notebook's four squares: a row a square, original and shifted for both models."""
    figure, axes = new_figure(8.4, 9, len(CORNERS), 2 * len(models))
    for column, (name, shift) in enumerate((name, shift) for name in models for shift in (0, SHIFT)):
        predicted, truth = predict(models[name], CORNERS, shift), truth_at(CORNERS, shift)
        scores, canvases = boxes.iou(predicted, truth), boxes.squares(CORNERS + shift)
        for row, panel in enumerate(axes[:, column]):
            panel.imshow(canvases[row, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[], xlabel=f"IoU {scores[row]:.2f}")
            panel.add_patch(_rectangle(truth[row], GREEN, "--", "true box"))
            panel.add_patch(_rectangle(predicted[row], ORANGE, "-", "predicted box"))
        axes[0, column].set_title(f"{name}, {'shifted' if shift else 'original'}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _rectangle(box: Tensor, colour: str, line: str, label: str) -> Any:
    from matplotlib.patches import Rectangle

    x, y, width, height = (boxes.CANVAS * box).tolist()
    corner = (x - width / 2 - 0.5, y - height / 2 - 0.5)  # pixel 0 is drawn from -0.5 to 0.5
    return Rectangle(corner, width, height, edgecolor=colour, linestyle=line, fill=False, linewidth=2, label=label)
