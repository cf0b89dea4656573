"""What the pictures of pieces, dialogs and stages hold: the data, not the pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation

from llama2_lib.figures.course import FILLS, Box, Node, chain, diagram
from llama2_lib.figures.text import (
    LEARNED,
    LINES,
    READ,
    WIDTH,
    MarkedAnswer,
    dialog_rows,
    marked_answers,
    masked_pieces,
    piece_boxes,
)


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


def test_the_chain_runs_like_a_snake():
    boxes = [Box(name=f"s{i}", what="x", notebook="01") for i in range(5)]
    figure = chain(boxes, columns=2)
    boxed = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    middles = [box.get_x() + box.get_width() / 2 for box in boxed]
    assert np.round(middles, 9).tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert [name for name in drawn(figure) if name.startswith("s")] == [b.name for b in boxes]


def test_a_diagram_joins_its_boxes_there_and_back():
    nodes = {"a": Node(0, 0, "one", "trained"), "b": Node(2, 1, "two\nlines"), "c": Node(1, 0)}
    figure = diagram(nodes, [("a", "b", "there"), ("b", "a", "back"), ("c", "b", "")])
    axes = figure.axes[0]
    boxed = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert [to_rgba(FILLS[kind]) for kind in ("trained", "data", "data")] == [
        box.get_facecolor() for box in boxed
    ]
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [
        ((0, 0), (2, 1)), ((2, 1), (0, 0)), ((1, 0), (2, 1)),
    ]  # fmt: skip
    labels = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
    assert labels["there"] != labels["back"], "bent apart"
    middle = np.mean([labels["there"], labels["back"]], axis=0)
    assert np.round(middle, 9).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="arrows must join a, b, c; got d"):
        diagram(nodes, [("a", "d", "")])


def test_targets_are_filled_and_bold_and_the_others_are_not():
    pieces, targets = ["<s>", "[INST]", "Hi", "Hello", "</s>"], [False, False, False, True, True]
    axes = masked_pieces(pieces, targets, title="one").axes[0]
    colours = [box.get_facecolor() for box in axes.patches]
    assert colours == [to_rgba(LEARNED if target else READ) for target in targets]
    assert [text.get_text() for text in axes.texts] == pieces
    weights = [text.get_fontweight() for text in axes.texts]
    assert weights == ["normal", "normal", "normal", "bold", "bold"]
    places = [box.get_x() for box in axes.patches]
    assert places == sorted(places)
    assert len(set(places)) == 5


def test_marks_follow_their_pieces_into_the_next_line():
    targets = [index >= 12 for index in range(20)]
    axes = masked_pieces(["abcdefghij"] * 20, targets).axes[0]
    assert len({box.get_y() for box in axes.patches}) == 4
    assert max(box.get_x() + box.get_width() for box in axes.patches) <= WIDTH
    filled = [box.get_facecolor() == to_rgba(LEARNED) for box in axes.patches]
    assert filled == targets


def test_rows_tell_prompt_answer_and_empty_apart_and_mark_where_dialogs_begin():
    loss_mask = [[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]]
    document = [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]
    axes = dialog_rows(loss_mask, document, title="two rows").axes[0]
    expected = [[0, 0, 1, 0, 1, 2], [0, 1, 1, 1, 2, 2]]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    (starts, _) = axes.collections
    lines = [segment.tolist() for segment in starts.get_segments()]
    assert lines == [[[2.5, -0.5], [2.5, 0.5]]]  # the second dialog of row 0; no line at padding


def test_each_answer_stands_beside_its_marks():
    answers = {
        "before": MarkedAnswer("I do not know.", {"score": 0.25, "brevity": 1.0}),
        "after": MarkedAnswer("\n".join(["a line"] * 20), {"score": 0.75, "brevity": 0.5}),
    }
    figure = marked_answers("Where does Ari live? " * 9, answers)
    texts = [axes for axes in figure.axes if axes.texts]
    bars = [axes for axes in figure.axes if axes.patches]
    assert [axes.get_title(loc="left") for axes in texts] == ["before", "after"]
    assert texts[0].texts[0].get_text() == "I do not know."
    cut = texts[1].texts[0].get_text().split("\n")
    assert len(cut) == LINES + 1
    assert cut[-1] == "..."
    widths = [[bar.get_width() for bar in axes.patches] for axes in bars]
    np.testing.assert_allclose(widths, [[0.25, 1.0], [0.75, 0.5]], rtol=0, atol=1e-12)
    assert [label.get_text() for label in bars[1].get_yticklabels()] == ["score", "brevity"]
    assert figure.get_suptitle().endswith(" ...")
