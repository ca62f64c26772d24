"""HTML pages from templates, in which every text from data or models is escaped."""

from importlib.resources import files

from loramix.errors import MissingExtraError


def page(template: str, **values: object) -> str:
    """Return the page of a template of this package; raises MissingExtraError without jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = (files("loramix.report") / template).read_text(encoding="utf-8")
    return str(environment.from_string(text).render(**values))
