"""Slices of chips, and how fast a step can be on one."""

import pytest

from core.errors import UserError
from training import chips
from training.chips import parse_slice


def test_a_slice_is_read_and_written():
    found = parse_slice("v5e:2x4")
    assert (found.kind, found.shape, found.size) == ("v5e", (2, 4), 8)
    assert str(found) == "v5e:2x4"
    assert found.platform == "tpu"
    assert parse_slice("h200:8").platform == "cuda"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v5e",
        "v5e:8",
        "v5e:2x4x2",
        "v5e:0x4",
        "v9:2x2",
        "v5e 2x4",
        "h200:2x4",
    ],
)
def test_a_wrong_slice_is_answered_with_the_forms_there_are(text):
    with pytest.raises(UserError) as caught:
        parse_slice(text)
    sentence = str(caught.value)
    assert repr(text) in sentence
    for chip in chips.CHIPS.values():
        assert chip.example in sentence


def test_the_examples_are_slices():
    for kind, chip in chips.CHIPS.items():
        assert parse_slice(chip.example).kind == kind


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("v5e:1x1", 0),
        ("v5e:1x2", 1),
        ("v5e:1x8", 14 / 8),  # Seven links, each of two directions.
        ("v5e:2x4", 20 / 8),  # Four and six.
        ("v5e:16x16", 4),  # A torus.
        ("v5e:8x16", 14 / 8 + 2),
        ("v5p:4x4x4", 6),
        ("v5p:2x2x1", 2),
    ],
)
def test_all_links_of_a_slice_send_at_once(text, links):
    found = parse_slice(text)
    assert found.bandwidth == pytest.approx(links * found.chip.link)


def test_cards_of_several_hosts_are_refused():
    assert parse_slice("h100:8").size == 8
    with pytest.raises(UserError, match="at most 8 cards"):
        parse_slice("h100:64")


def test_the_bound_is_the_longest_of_three():
    found = parse_slice("v5e:2x4")
    bound = chips.roofline(found, flops=197e9, accessed=819e6, sent=375e6)
    assert bound.compute == pytest.approx(1e-3)
    assert bound.memory == pytest.approx(1e-3)
    assert bound.links == pytest.approx(3e-3)
    assert bound.seconds == bound.links and bound.limit == "links"
    assert bound.sum == pytest.approx(5e-3)


def test_a_chip_alone_sends_nothing():
    alone = parse_slice("v5e:1x1")
    assert chips.roofline(alone, 1e9, 1e9, sent=0).links == 0
