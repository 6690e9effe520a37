"""Times as people say them."""

import pytest

from core.durations import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (7265, "2 h 1 min"), (90061, "1 d 1 h")],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words
