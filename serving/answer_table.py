"""Answers on a terminal: a row for each of an image's likeliest classes, possible labels, and marks on strangers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.respond import Answer
from serving.torchserve.archive import Archive, read_manifest

MARK = "*"
SHOWN_LABELS = 5  # of a prediction set
FLAGS = {  # in words
    "atypical": f"{MARK} atypical: less typical than all but 1 % of the images that were held out from the training of "
    "{model}; probably of none of its classes",
    "typicality_too_coarse": "{model} has too few held-out images to call any image atypical",
}


def print_answers(images: Sequence[Path], answers: Sequence[Answer], archives: Path | None = None) -> None:
    """Print what each image got; what is wrong with an image, and what a mark means, stand below the narrow table.

    Args:
        images: the files.
        answers: one an image.
        archives: folder of those that the server serves. Models without held-out images say there below which
            log-density an image is atypical; None if they are elsewhere, and then nothing of theirs is marked.
    """
    is_judged = any("typicality" in answer for answer in answers)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=is_judged)
    table.add_column("image", overflow="fold", min_width=12)
    table.add_column("label", overflow="fold")
    for name in ("probability", "component", *(["typicality"] if is_judged else ["p(component)", "log-density"])):
        table.add_column(name, no_wrap=True, justify="right")
    if (coverage := _coverage(answers)) is not None:
        table.add_column(f"possible at {100 * coverage:g} %", overflow="fold", min_width=12)
    shown = [image.name for image in images]
    if len(set(shown)) < len(shown):
        shown = [str(image) for image in images]
    bounds = _bounds(answers, archives)
    for name, answer in zip(shown, answers, strict=True):
        for index, cells in enumerate(_rows(answer, bounds)):
            table.add_row("" if index else escape(name), *cells)
    Console().print(table)
    _print_notes(images, answers, bounds)


def _coverage(answers: Sequence[Answer]) -> float | None:
    return next((answer["labels_at"]["coverage"] for answer in answers if "labels_at" in answer), None)


def _print_notes(images: Sequence[Path], answers: Sequence[Answer], bounds: Mapping[Archive, float]) -> None:
    notes = Console(soft_wrap=True, highlight=False)
    for flag, words in FLAGS.items():
        for model in sorted({_model(answer) for answer in answers if flag in answer.get("flags", ())}):
            notes.print(words.format(model=model), markup=False)
    for model in sorted({_model(answer) for answer in answers if _is_too_thin(answer, bounds)}):
        notes.print(
            f"{MARK} atypical: less dense than 99 % of the images that {model} was tested on, {bounds[model]:.2f}; "
            "probably of none of its classes"
        )
    for image, answer in zip(images, answers, strict=True):
        if "error" in answer:
            reason = escape(f"{answer['error']['code']}: {answer['error']['message']}")
            notes.print(f"[red]{escape(str(image))}:[/red] {reason}")


def _rows(answer: Answer, bounds: Mapping[Archive, float]) -> Iterator[list[str]]:
    """The cells of one image: a row for each of its likeliest classes, what is of the image itself in the first."""
    if "error" in answer:
        yield ["[red]error[/red]"]
        return
    of_component, of_image = (
        (_named, _judged(answer)) if "typicality" in answer else (_numbered, _density(answer, bounds))
    )
    for index, candidate in enumerate(answer["top_k"]):
        cells = [escape(candidate["label"]), f"{candidate['probability']:.4f}", *of_component(candidate)]
        yield cells if index else [*cells, *of_image]


def _named(candidate: Answer) -> list[str]:
    """A class's component by number and name, and its probability."""
    if "component" not in candidate:
        return ["-"]
    name = escape(f"{candidate['component_name']} ") if "component_name" in candidate else ""
    return [f"{candidate['component']} {name}{candidate['component_probability']:.2f}"]


def _numbered(candidate: Answer) -> list[str]:
    if "component" not in candidate:
        return ["-", "-"]
    name = escape(f" {candidate['component_name']}") if "component_name" in candidate else ""
    return [f"{candidate['component']}{name}", f"{candidate['component_probability']:.4f}"]


def _judged(answer: Answer) -> list[str]:
    """How typical an image is, and which labels are possible."""
    mark = f"{MARK} " if "atypical" in answer["flags"] else ""
    possible = [escape(_set(answer["labels_at"]["set"]))] if "labels_at" in answer else []
    return [f"{mark}{answer['typicality']:.4f}", *possible]


def _density(answer: Answer, bounds: Mapping[Archive, float]) -> list[str]:
    mark = f"{MARK} " if _is_too_thin(answer, bounds) else ""
    return [f"{mark}{answer['log_density']:.2f}" if "log_density" in answer else "-"]


def _set(labels: Sequence[str]) -> str:
    more = len(labels) - SHOWN_LABELS
    return ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def _bounds(answers: Sequence[Answer], archives: Path | None) -> dict[Archive, float]:
    """Of each model that knows it and has no held-out images: the log-density below which an image is atypical."""
    bounds: dict[Archive, float] = {}
    if archives is None:
        return bounds
    for model in {_model(answer) for answer in answers if "log_density" in answer and "typicality" not in answer}:
        try:
            bound = read_manifest(archives / model.file).atypical_below
        except FileNotFoundError:  # the version was taken away a moment ago
            continue
        if bound is not None:
            bounds[model] = bound
    return bounds


def _model(answer: Answer) -> Archive:
    return Archive(answer["model"]["name"], int(answer["model"]["version"]))


def _is_too_thin(answer: Answer, bounds: Mapping[Archive, float]) -> bool:
    """Whether the log-density calls an image atypical, of a model without held-out images."""
    return "log_density" in answer and answer["log_density"] < bounds.get(_model(answer), float("-inf"))
