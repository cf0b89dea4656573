"""What all streams of the world have in common: seeds, prefixes, no end, refused arguments."""

from itertools import islice

import pytest

from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import borderline_training, demonstrations
from llama2_lib.world.dialogs import dialogs
from llama2_lib.world.documents import documents
from llama2_lib.world.instructions import briefs, instructed_dialogs, instructions
from llama2_lib.world.judges import judge_of
from llama2_lib.world.pairs import STREAMS, helpfulness_pairs, safety_pairs
from llama2_lib.world.prompts import (
    adversarial_prompts,
    borderline_prompts,
    helpful_prompts,
    prompts,
)
from llama2_lib.world.source import Source, WorldSource

WORLD = make_world(0)
SOURCE: Source = WorldSource(WORLD)
SPLIT_STREAMS = (
    *(helpful_prompts, adversarial_prompts, borderline_prompts, prompts),
    *(helpfulness_pairs, safety_pairs),
)
EVERY = (
    *(documents, dialogs, demonstrations, borderline_training),
    *(instructions, briefs, instructed_dialogs, *SPLIT_STREAMS),
)


@pytest.mark.parametrize("stream", EVERY)
def test_streams_are_seeded_and_a_prefix_stays(stream):
    first = list(stream(WORLD, 5, 60))
    assert list(stream(WORLD, 5, 20)) == first[:20]
    assert list(islice(stream(WORLD, 5), 20)) == first[:20]
    assert list(stream(WORLD, 5, 0)) == []
    assert list(stream(WORLD, 6, 60)) != first
    with pytest.raises(ValueError, match="must not be negative"):
        stream(WORLD, 5, -1)


@pytest.mark.parametrize("stream", SPLIT_STREAMS)
def test_splits_differ_and_an_unknown_one_is_named(stream):
    assert list(stream(WORLD, 5, 20)) != list(stream(WORLD, 5, 20, "held out"))
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'held out'\]; got 't"):
        stream(WORLD, 5, 1, "test")


def test_the_streams_of_the_source_are_those_of_the_world():
    assert list(SOURCE.documents(3, 20)) == list(documents(WORLD, 3, 20))
    shares = {"story": 1.0}
    assert list(SOURCE.documents(3, 5, shares)) == list(documents(WORLD, 3, 5, shares))
    assert list(SOURCE.dialogs(3, 20, "noisy")) == list(demonstrations(WORLD, 3, 20, "noisy"))
    assert list(SOURCE.prompts(3, 20, "held out")) == list(prompts(WORLD, 3, 20, "held out"))
    for stream, draw in zip(STREAMS, (helpfulness_pairs, safety_pairs), strict=True):
        assert list(SOURCE.pairs(stream, 3, 5)) == list(draw(WORLD, 3, 5))
        assert list(SOURCE.pairs(stream, 3, 5, "held out")) == list(draw(WORLD, 3, 5, "held out"))
    only = {"adversarial": 1.0}
    assert all(prompt.kind == "adversarial" for prompt in SOURCE.prompts(1, 5, shares=only))
    assert list(SOURCE.dialogs(1, 5, shares=only)) == list(demonstrations(WORLD, 1, 5, shares=only))
    assert isinstance(SOURCE, Source)
    assert SOURCE.judge is judge_of(WORLD)


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="stream must be one of"):
        SOURCE.pairs("kindness", 0)
