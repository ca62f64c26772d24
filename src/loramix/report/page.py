"""HTML pages from templates, in which all text from data and models is escaped."""

import base64
from importlib.resources import files

from loramix.errors import MissingExtraError


def fill_template(template: str, **values: object) -> str:
    """Return the page that a template of this room gives; MissingExtraError without jinja2."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(
        loader=FunctionLoader(read_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
    )
    page = str(environment.get_template(template).render(**values))
    return page.replace("\0", "\u2400")  # HTML has no NUL; browsers drop it or show U+FFFD


def read_asset(name: str) -> str:
    """Return the text of a template, style sheet or script of this room."""
    return (files("loramix.report") / name).read_text(encoding="utf-8")


def data_uri(svg: str) -> str:
    """Return an SVG as a data URI.

    Inline, the drawings of a page would share their element ids, which matplotlib repeats.
    """
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
