"""HTML pages from templates, for `summarize` and the reports of trainings. All text is escaped."""

from pathlib import Path
from typing import Any


def filled_in(template: Path, **values: Any) -> str:
    """A template of jinja2 with its values; one that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template.name).render(values)


def percent(share: float) -> str:
    """A share from 0 to 1 in percent, with enough digits to tell a small one from none."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.1g} %"
