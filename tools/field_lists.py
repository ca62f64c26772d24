"""Show the fields that a docstring explains as a list, on the page of Python's reference."""

import re

import griffe

_FIELDS = re.compile(r"^((?:[a-z_]+, )*[a-z_]+): ")


class FieldLists(griffe.Extension):
    """Rewrite docstrings before their sections are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Turn the fields of an object's docstring into a list."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """Return a docstring with every `name: …` at the start of a line as an item of its own."""
    joined = re.sub(r"\n {4,}(?=\S)", " ", text)  # what continues a field is indented
    return "\n".join(_FIELDS.sub(_item, line) for line in joined.splitlines())


def _item(fields: re.Match[str]) -> str:
    return "\n- " + ", ".join(f"`{name}`" for name in fields[1].split(", ")) + ": "
