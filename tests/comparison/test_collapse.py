"""Warnings of gates that do not route."""

from loramix.comparison.collapse import collapse


def test_gates_that_do_not_route_are_called_out() -> None:
    one = {"haiku": 0.95, "title": 0.05}
    assert "collapsed: 'haiku'" in collapse({"haiku": one, "title": one})[0]
    even = {"haiku": 0.5, "title": 0.5}
    assert "no routing" in collapse({"haiku": even, "title": even})[0]
    assert collapse({"haiku": one, "title": {"haiku": 0.1, "title": 0.9}}) == []
    assert collapse({"haiku": one}) == [], "one task alone shows no collapse"
