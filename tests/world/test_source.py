"""The world as a source: thin methods over the streams, nothing drawn differently."""

from itertools import islice

import pytest

from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import demonstrations
from llama2_lib.world.documents import documents
from llama2_lib.world.judges import judge_of
from llama2_lib.world.pairs import helpfulness_pairs, safety_pairs
from llama2_lib.world.prompts import prompts
from llama2_lib.world.source import Source, WorldSource

WORLD = make_world(0)
SOURCE: Source = WorldSource(WORLD)


def test_the_streams_are_those_of_the_world():
    assert list(SOURCE.documents(3, 20)) == list(documents(WORLD, 3, 20))
    shares = {"story": 1.0}
    assert list(SOURCE.documents(3, 5, shares)) == list(documents(WORLD, 3, 5, shares))
    assert list(SOURCE.dialogs(3, 20, "noisy")) == list(demonstrations(WORLD, 3, 20, "noisy"))
    asked = list(SOURCE.prompts(3, 20, "held out"))
    assert asked == list(prompts(WORLD, 3, 20, "held out"))
    assert asked != list(SOURCE.prompts(3, 20))
    for stream, draw in (("helpfulness", helpfulness_pairs), ("safety", safety_pairs)):
        assert list(SOURCE.pairs(stream, 3, 5)) == list(draw(WORLD, 3, 5))
        assert list(SOURCE.pairs(stream, 3, 5, "held out")) == list(draw(WORLD, 3, 5, "held out"))


def test_shares_reach_dialogs_and_prompts():
    only = {"adversarial": 1.0}
    assert all(prompt.kind == "adversarial" for prompt in SOURCE.prompts(1, 5, shares=only))
    assert list(SOURCE.dialogs(1, 5, shares=only)) == list(demonstrations(WORLD, 1, 5, shares=only))


def test_streams_are_endless_unless_asked_for_n():
    endless = [
        SOURCE.documents(0),
        SOURCE.dialogs(0),
        SOURCE.prompts(0),
        SOURCE.pairs("safety", 0),
    ]
    assert [len(list(islice(stream, 3))) for stream in endless] == [3] * 4


def test_the_judge_is_that_of_the_world():
    assert isinstance(SOURCE, Source)
    assert SOURCE.judge is judge_of(WORLD)


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="stream must be one of"):
        SOURCE.pairs("kindness", 0)
