"""What every page of the console has: the layout, the way to the others, and how it is sent."""

from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse

from serving.page import filled_in

TEMPLATES = Path(__file__).parent / "templates"
NAVIGATION = (("Classify", "/"), ("Health", "/health"), ("Table", "/table"))


def page(template: str, title: str, **values: Any) -> HTMLResponse:
    """A page of the console.

    Args:
        template: its file among the console's templates; it extends `layout.html.jinja`.
        title: its name in the navigation.
        values: what else the template needs.
    """
    return HTMLResponse(filled_in(TEMPLATES / template, title=title, navigation=NAVIGATION, **values))
