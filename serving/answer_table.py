"""Answers on a terminal: a row for each of an image's likeliest classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.respond import Answer


def print_answers(images: Sequence[Path], answers: Sequence[Answer]) -> None:
    """Print what each image got; what is wrong with an image stands below the table, which is narrow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold", min_width=12)
    table.add_column("label", overflow="fold")
    for name in ("probability", "component", "p(component)", "log-density"):
        table.add_column(name, no_wrap=True, justify="right")
    shown = [image.name for image in images]
    if len(set(shown)) < len(shown):
        shown = [str(image) for image in images]
    for name, answer in zip(shown, answers, strict=True):
        for index, cells in enumerate(_rows(answer)):
            table.add_row("" if index else escape(name), *cells)
    Console().print(table)
    for image, answer in zip(images, answers, strict=True):
        if "error" in answer:
            reason = escape(f"{answer['error']['code']}: {answer['error']['message']}")
            Console(soft_wrap=True, highlight=False).print(f"[red]{escape(str(image))}:[/red] {reason}")


def _rows(answer: Answer) -> Iterator[list[str]]:
    """The cells of one image: a row for each of its likeliest classes, the log-density in the first."""
    if "error" in answer:
        yield ["[red]error[/red]"]
        return
    density = answer.get("log_density")
    for index, candidate in enumerate(answer["top_k"]):
        component, share = candidate.get("component", "-"), candidate.get("component_probability")
        yield [
            escape(candidate["label"]),
            f"{candidate['probability']:.4f}",
            str(component),
            "-" if share is None else f"{share:.4f}",
            ("-" if density is None else f"{density:.2f}") if index == 0 else "",
        ]
