"""YAML of strangers: read with a bound on what its aliases stand for.

An alias repeats what it names, and one that names others repeats all of them: a kilobyte can stand
for gigabytes once it is copied or written out.
"""

import yaml

_LARGEST = 10**6  # characters
_DEEPEST = 100
_MOST = 100_000  # values, with each alias counted as what it stands for


def read_yaml(text: str) -> object:
    """Return the content of a YAML text; raises ValueError, in words, if it cannot be read."""
    if len(text) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} characters")
    try:
        _check_depth(text)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}, set()) > _MOST:
                raise ValueError(f"it stands for more than {_MOST:,} values (by its aliases)")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _size(node: yaml.Node, known: dict[int, int], within: set[int]) -> int:
    """Return how many values a node stands for; ValueError if it holds itself."""
    if id(node) in within:
        raise ValueError("it has an alias that holds itself")
    if id(node) in known:
        return known[id(node)]
    size = 1
    if isinstance(node, yaml.CollectionNode):
        within.add(id(node))
        for child in node.value:
            parts = child if isinstance(child, tuple) else (child,)
            size += sum(_size(part, known, within) for part in parts)
        within.discard(id(node))
    known[id(node)] = size
    return size
