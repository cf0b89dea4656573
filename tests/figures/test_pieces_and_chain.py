import pytest

from llama2_lib.figures.course import Box, chain
from llama2_lib.figures.pieces import WIDTH, piece_boxes


def drawn(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_piece_has_a_box_and_equal_pieces_one_colour():
    figure = piece_boxes({"ours": ["a", "bc", "a"], "theirs": ["abca"]})
    boxes = figure.axes[0].patches
    assert len(boxes) == 4
    assert boxes[0].get_facecolor() == boxes[2].get_facecolor() != boxes[1].get_facecolor()
    assert drawn(figure) == ["ours (3 pieces)", "a", "bc", "a", "theirs (1 pieces)", "abca"]


def test_a_long_text_goes_on_below():
    figure = piece_boxes({"long": ["abcdefghij"] * 20})
    boxes = figure.axes[0].patches
    assert len({box.get_y() for box in boxes}) == 4
    assert max(box.get_x() + box.get_width() for box in boxes) <= WIDTH


def test_rows_without_pieces_are_refused():
    with pytest.raises(ValueError, match="every row needs a piece"):
        piece_boxes({"none": []})


def test_the_chain_runs_like_a_snake():
    boxes = [Box(name=f"s{i}", what="x", notebook="01") for i in range(5)]
    figure = chain(boxes, columns=2)
    places = [patch.get_x() for patch in figure.axes[0].patches[:5]]
    assert places == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert [name for name in drawn(figure) if name.startswith("s")] == [b.name for b in boxes]
    with pytest.raises(ValueError, match="at least one box"):
        chain([])
