"""A tile a claim, its verdict by colour and pattern, counts below."""

from matplotlib.patches import Rectangle

from llama2_lib.figures.course import ACROSS, LOOKS, Tile, ledger_map


def test_every_claim_is_a_tile_with_its_number_and_look():
    names = list(LOOKS)
    tiles = [
        Tile(n, "3 RLHF" if n % 3 else "2 pretraining", names[n % 4], n != 7) for n in range(1, 31)
    ]
    figure = ledger_map(tiles)
    [axes] = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(boxes) == 30
    numbers = {text.get_text(): text for text in axes.texts}
    assert set(numbers) == {str(n) for n in range(1, 31)}
    assert numbers["7"].get_color() != numbers["8"].get_color()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label for label in labels if label] == ["3 RLHF", "2 pretraining"]
    assert max(box.get_x() for box in boxes) <= ACROSS - 1
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == [f"{name}: {sum(t.verdict == name for t in tiles)}" for name in names[:4]]
    looks = {(box.get_facecolor(), box.get_hatch()) for box in boxes}
    assert len(looks) == 4
