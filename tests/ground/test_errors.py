"""Errors carry their facts, also through a worker's pickle."""

import pickle

import pytest

from cynosure.ground import errors
from cynosure.ground.errors import CynosureError, ExitCode, NotEnoughStars

CLASSES = [getattr(errors, n) for n in errors.__all__ if n != "ExitCode"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_pickle_keeps_everything(cls):
    facts = {
        "image": "m81.fits", "reason": "r", "path": "p", "catalog": "c", "resource": "x",
        "what": "w",
        "n_sources": 3, "n_reference": 4, "n_points": 1, "n_parameters": 2, "needed": 8,
        "condition": 1e9, "seconds": 2.5, "url": "u", "store": "s",
    }
    text = "{image}: said by hand" if cls.text == "{message}" else None
    error = cls(text, hint="do this", **facts)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.facts == facts
    assert copy.hint == "do this"
    assert copy.n_sources == 3
    assert "{" not in str(error)


def test_text_facts_and_attributes():
    error = NotEnoughStars(image="a.fits", n_sources=3, needed=8)
    assert str(error) == "a.fits: 3 stars found, 8 needed"
    assert error.needed == 8
    assert error.exit_code == ExitCode.NOT_ENOUGH_STARS
    with pytest.raises(AttributeError):
        _ = error.nothing


def test_a_missing_fact_is_shown_and_not_a_crash():
    assert "{needed}" in str(NotEnoughStars(image="a.fits", n_sources=3))


def test_braces_in_a_message_without_facts_stay():
    assert str(CynosureError("a {b} c")) == "a {b} c"


def test_exit_codes_are_distinct_and_in_the_range_of_the_shell():
    values = [int(c) for c in ExitCode]
    assert len(values) == len(set(values))
    assert all(0 <= v <= 125 or v == 130 for v in values)
