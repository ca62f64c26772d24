"""HTML pages from templates, in which every text from data or models is escaped."""

import base64
from importlib.resources import files

from loramix.errors import MissingExtraError


def page(template: str, **values: object) -> str:
    """Return the page of a template of this package; raises MissingExtraError without jinja2."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return str(environment.get_template(template).render(**values))


def source(name: str) -> str:
    """Return the text of a file that pages are made of."""
    return (files("loramix.report") / name).read_text(encoding="utf-8")


def picture(svg: str) -> str:
    """Return an SVG as a data URI: every drawing keeps its own names."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
