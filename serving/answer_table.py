"""Answers on a terminal: a row for each of an image's likeliest classes, and a mark on those of strangers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.respond import Answer
from serving.torchserve.archive import Archive, read_manifest

MARK = "*"


def print_answers(images: Sequence[Path], answers: Sequence[Answer], archives: Path | None = None) -> None:
    """Print what each image got; what is wrong with an image, and what a mark means, stand below the narrow table.

    Args:
        images: the files.
        answers: one an image.
        archives: folder of those that the server serves, whose bundles say below which log-density an image is
            atypical; None if they are elsewhere, and then nothing is marked.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold", min_width=12)
    table.add_column("label", overflow="fold")
    for name in ("probability", "component", "p(component)", "log-density"):
        table.add_column(name, no_wrap=True, justify="right")
    shown = [image.name for image in images]
    if len(set(shown)) < len(shown):
        shown = [str(image) for image in images]
    bounds = _bounds(answers, archives)
    for name, answer in zip(shown, answers, strict=True):
        for index, cells in enumerate(_rows(answer, bounds)):
            table.add_row("" if index else escape(name), *cells)
    Console().print(table)
    _print_notes(images, answers, bounds)


def _print_notes(images: Sequence[Path], answers: Sequence[Answer], bounds: Mapping[Archive, float]) -> None:
    notes = Console(soft_wrap=True, highlight=False)
    for model in sorted({_model(answer) for answer in answers if _is_atypical(answer, bounds)}):
        notes.print(
            f"{MARK} atypical: less dense than 99 % of the images that {model} was tested on, {bounds[model]:.2f}; "
            "probably of none of its classes"
        )
    for image, answer in zip(images, answers, strict=True):
        if "error" in answer:
            reason = escape(f"{answer['error']['code']}: {answer['error']['message']}")
            notes.print(f"[red]{escape(str(image))}:[/red] {reason}")


def _rows(answer: Answer, bounds: Mapping[Archive, float]) -> Iterator[list[str]]:
    """The cells of one image: a row for each of its likeliest classes, the log-density in the first."""
    if "error" in answer:
        yield ["[red]error[/red]"]
        return
    density = f"{answer['log_density']:.2f}" if "log_density" in answer else "-"
    for index, candidate in enumerate(answer["top_k"]):
        component, share = candidate.get("component", "-"), candidate.get("component_probability")
        yield [
            escape(candidate["label"]),
            f"{candidate['probability']:.4f}",
            str(component),
            "-" if share is None else f"{share:.4f}",
            "" if index else f"{MARK} {density}" if _is_atypical(answer, bounds) else density,
        ]


def _bounds(answers: Sequence[Answer], archives: Path | None) -> dict[Archive, float]:
    """Of each model that knows it and has answered: the log-density in nats below which an image is atypical."""
    bounds: dict[Archive, float] = {}
    if archives is None:
        return bounds
    for model in {_model(answer) for answer in answers if "log_density" in answer}:
        try:
            bound = read_manifest(archives / model.file).atypical_below
        except FileNotFoundError:  # the version was taken away a moment ago
            continue
        if bound is not None:
            bounds[model] = bound
    return bounds


def _model(answer: Answer) -> Archive:
    return Archive(answer["model"]["name"], int(answer["model"]["version"]))


def _is_atypical(answer: Answer, bounds: Mapping[Archive, float]) -> bool:
    return "log_density" in answer and answer["log_density"] < bounds.get(_model(answer), float("-inf"))
