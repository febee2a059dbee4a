"""Do the parameters grow with the image? An MLP's do, a convolutional network's only where it flattens.

Every model is built by the project's own code on torch's meta device, which has shapes and no memory, and its
parameters are counted there: the MLP of a 3840 x 2160 photograph would take 25 GB.
"""

from typing import Any

import torch
from rich.table import Table

from training.classifier import Architecture, build_classifier
from training.digests import digest_of
from training.encoders import EncoderKind
from training.figures import COLOURS, new_figure, save_figure, tidy
from training.recipe import EncoderSpec, HeadSpec
from training.studies.study import Outcome, Setting

SIZES = {"32 x 32": (32, 32), "256 x 256": (256, 256), "1280 x 720": (1280, 720), "3840 x 2160": (3840, 2160)}
CLASS_COUNT = 10
MODELS: dict[str, tuple[EncoderKind, dict[str, Any]]] = {
    "MLP, 256-128 hidden": ("mlp", {"hidden": (256, 128)}),
    "two convolutions, flattened, 128 hidden": ("two-conv", {"width": 16, "hidden": (128,)}),
    "six convolutions, global pooling": ("six-conv", {"width": 64}),
}


def count_parameters(kind: EncoderKind, width_px: int, height_px: int, **encoder: Any) -> int:
    """Trainable parameters of a softmax classifier of ten classes on colour images."""
    spec = EncoderSpec.model_validate({"kind": kind, **encoder})
    architecture = Architecture((3, height_px, width_px), CLASS_COUNT, spec, HeadSpec(kind="softmax"))
    with torch.device("meta"):
        classifier = build_classifier(architecture)
    return sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad)


def parameters() -> dict[str, Any]:
    """What decides the figures, as plain values."""
    return {"sizes": SIZES, "models": MODELS, "classes": CLASS_COUNT}


def run(setting: Setting) -> Outcome:
    """Count, tabulate and draw."""
    counts = {
        name: {size: count_parameters(kind, *sides, **encoder) for size, sides in SIZES.items()}
        for name, (kind, encoder) in MODELS.items()
    }
    table = Table("parameters", *SIZES, box=None)
    for name, by_size in counts.items():
        table.add_row(name, *[f"{count:,}" for count in by_size.values()])
    picture = save_figure(_draw(counts), setting.out / "parameter-growth.png")
    return Outcome({"parameters": counts}, table, digest_of(parameters()), (picture,))


def _draw(counts: dict[str, dict[str, int]]) -> Any:
    figure, axes = new_figure(9, 4.6)
    panel, width = axes[0, 0], 0.8 / len(counts)
    for index, (name, by_size) in enumerate(counts.items()):
        places = [position + (index - 1) * width for position in range(len(by_size))]
        bars = panel.bar(places, by_size.values(), width * 0.94, color=COLOURS[index], label=name)
        panel.bar_label(bars, [_short(count) for count in by_size.values()], fontsize=9, padding=2)
    panel.set_yscale("log")
    panel.set_ylim(1e5, 5e10)
    panel.set_xticks(range(len(SIZES)), SIZES)
    panel.legend(loc="upper left", frameon=False)
    tidy(panel, title="Parameters of a classifier of ten classes", x="colour image, pixels", y="parameters")
    panel.grid(visible=False, axis="x")
    return figure


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.0f} k"
