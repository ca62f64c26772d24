"""Warnings of gates that do not route."""

from loramix.comparison.collapse import collapse

OWN = {"haiku": "haiku", "title": "title"}


def test_gates_that_do_not_route_are_called_out() -> None:
    one = {"haiku": 0.95, "title": 0.05}
    assert "collapsed: 'haiku'" in collapse({"haiku": one, "title": one}, OWN)[0]
    even = {"haiku": 0.5, "title": 0.5}
    assert "no routing" in collapse({"haiku": even, "title": even}, OWN)[0]
    assert collapse({"haiku": one, "title": {"haiku": 0.1, "title": 0.9}}, OWN) == []
    assert collapse({"haiku": one}, OWN) == [], "one task alone shows no collapse"


def test_tasks_of_one_expert_and_tasks_without_show_no_collapse() -> None:
    right, other = {"texts": 0.95, "haiku": 0.05}, {"texts": 0.1, "haiku": 0.9}
    own = {"title": "texts", "command": "texts", "haiku": "haiku"}
    assert collapse({"title": right, "command": right}, own) == []
    assert collapse({"title": right, "command": right, "haiku": other}, own) == []
    assert collapse({"title": right, "spare": right}, own) == []
    assert (
        "collapsed: 'texts'" in collapse({"title": right, "haiku": right, "spare": other}, own)[0]
    )
