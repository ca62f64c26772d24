"""The playground: one page that needs no other file."""

from functools import cache
from importlib.resources import files

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def page() -> str:
    """Return the page, in the look of the reports."""
    style = files("loramix.report").joinpath("style.css").read_text(encoding="utf-8")
    text = files("loramix.serving").joinpath("playground.html").read_text(encoding="utf-8")
    return text.replace("/* the reports' style */", style, 1)
