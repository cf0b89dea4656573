"""Figures of reward models and of the policies that are trained on them."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike
from scipy.special import expit

from llama2_lib.figures.curves import DASHES, MARKERS, heatmap, lines
from llama2_lib.figures.theme import label_axes, legend_below, new_figure, theme

Band = Sequence[ArrayLike]
"""Values, low, high: three arrays of one length."""


def bands_of(series: Mapping[str, Band], length: int, what: str) -> dict[str, np.ndarray]:
    """Return each series as an array of three rows."""
    bands = {
        label: [np.asarray(row, dtype=float) for row in rows] for label, rows in series.items()
    }
    if not bands:
        raise ValueError("at least one series is needed; got none.")
    for label, rows in bands.items():
        if [row.shape for row in rows] != [(length,)] * 3:
            raise ValueError(
                f"{label!r} must be (values, low, high), one number {what}: {length}; got shapes "
                f"{[row.shape for row in rows]}."
            )
        value, low, high = rows
        if not ((low <= value) & (value <= high)).all():
            raise ValueError(f"{label!r}: each value must lie in low..high; check their order.")
    return {label: np.stack(rows) for label, rows in bands.items()}


def _sizes(band: np.ndarray) -> np.ndarray:
    """Return how far the interval reaches below and above each value."""
    value, low, high = band
    return np.stack([value - low, high - value])


@theme()
def accuracy_by_grade(
    grades: Sequence[str],
    accuracy: Mapping[str, Band],
    *,
    ceiling: Sequence[float | None] | None = None,
    paper: Mapping[str, Sequence[float | None]] | None = None,
    title: str = "",
) -> Figure:
    """Draw one group of bars a grade, one bar a model, with intervals (paper table 8).

    Args:
        grades: Names of the groups; "all" may be one of them.
        accuracy: For each model (values, low, high), shares between 0 and 1.
        ceiling: What the annotators' noise allows at best, one a grade; drawn as black steps.
        paper: The paper's values of some models, drawn as diamonds.
    """
    bands = bands_of(accuracy, len(grades), "a grade")
    strangers = sorted(set(paper or {}) - set(bands))
    if strangers:
        raise ValueError(f"paper may name the models {[*bands]}; got {strangers} as well.")
    figure, axes = new_figure(max(7.0, 1.7 * len(grades)), 4.4)
    at, width = np.arange(len(grades)), 0.8 / len(bands)
    hatches = ("", "//", "..", "xx")
    for index, (label, band) in enumerate(bands.items()):
        x = at + (index - (len(bands) - 1) / 2) * width
        axes.bar(
            x, 100 * band[0], width=0.92 * width, label=label,
            hatch=hatches[index % 4], edgecolor="white",
        )  # fmt: skip
        axes.errorbar(x, 100 * band[0], 100 * _sizes(band), fmt="none", ecolor="black", capsize=5)
        _diamonds(axes, x, (paper or {}).get(label))
    if ceiling is not None:
        known = [(x, 100 * y) for x, y in zip(at, ceiling, strict=True) if y is not None]
        middle, height = np.array(known).reshape(-1, 2).T
        axes.hlines(height, middle - 0.45, middle + 0.45, "k", lw=2.5, label="ceiling of the noise")
    if paper:
        axes.plot([], [], "D", color="black", mfc="white", ms=8, label="paper")
    axes.axhline(50, color="0.35", linestyle=":", lw=1.5, label="chance")
    axes.set_xticks(at, [grade.replace(" ", "\n", 1) for grade in grades])
    axes.set_ylim(0, 105)
    label_axes(axes, "grade of the pair", "pairs in the right order (%)", title)
    legend_below(figure, axes)
    return figure


def _diamonds(axes: Axes, x: np.ndarray, values: Sequence[float | None] | None) -> None:
    """Draw the paper's values, shares, where there are any."""
    known = [
        (a, 100 * b) for a, b in zip(x, values or [None] * len(x), strict=True) if b is not None
    ]
    if known:
        axes.plot(*zip(*known, strict=True), "D", color="black", ms=8, mfc="white", zorder=3)


@theme()
def score_histograms(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    *,
    bins: int = 25,
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """Draw sigmoid(score) of some kinds of answers, one panel a model (paper figure 27).

    Args:
        scores: For each model and each kind of answer (such as "chosen", "rejected") raw scores.
        bins: Of equal width between 0 and 1.
        threshold: A line at this sigmoid(score), such as 0.15.
    """
    if not scores or any(
        not kinds or any(np.size(values) == 0 for values in kinds.values())
        for kinds in scores.values()
    ):
        raise ValueError("every panel needs scores; got a figure, model or kind without any.")
    figure, axes = new_figure(
        max(5.0, 3.6 * len(scores)), 3.9, columns=len(scores), squeeze=False, sharey=True
    )
    edges = np.linspace(0, 1, bins + 1)
    for axis, (model, kinds) in zip(axes[0], scores.items(), strict=True):
        for index, (kind, values) in enumerate(kinds.items()):
            shares = expit(np.asarray(values, dtype=float).ravel())
            heights = np.histogram(shares, edges)[0] / shares.size
            dashes = DASHES[index % 4]
            axis.stairs(100 * heights, edges, label=kind, lw=2, linestyle=dashes, color=f"C{index}")
            axis.stairs(100 * heights, edges, fill=True, alpha=0.2, color=f"C{index}")
        if threshold is not None:
            axis.axvline(threshold, color="0.35", lw=1.5, label=f"threshold {threshold:g}")
        axis.set_title(model)
        axis.set_xlim(0, 1)
        axis.set_xlabel("sigmoid(score)")
    axes[0, 0].set_ylabel("answers (%)")
    legend_below(figure, axes[0, 0])
    figure.suptitle(title, fontsize=14)
    return figure


@theme()
def calibration(
    points: Mapping[str, Sequence[ArrayLike]],
    *,
    xlabel: str = "gold score (0 to 1)",
    ylabel: str = "mean sigmoid(score)",
    title: str = "",
) -> Figure:
    """Draw what a model says of answers of each quality, with intervals (paper figure 29).

    Args:
        points: For each model (x, values, low, high): mean gold score of a bin, and the mean
            score there.
    """
    figure, axes = new_figure()
    for index, (label, (x, *band)) in enumerate(points.items()):
        draw_points(axes, index, label, np.asarray(x, dtype=float), band)
    if not points:
        raise ValueError("at least one series is needed; got none.")
    label_axes(axes, xlabel, ylabel, title)
    axes.set_ylim(0, 1)
    legend_below(figure, axes)
    return figure


def draw_points(axes: Axes, index: int, label: str, x: np.ndarray, band: Band) -> None:
    """Draw the series number `index`: marked points with intervals, joined by a line."""
    rows = bands_of({label: band}, len(x), "a point")[label]
    axes.errorbar(
        x, rows[0], _sizes(rows), label=label, capsize=5, ms=8,
        marker=MARKERS[index % len(MARKERS)], linestyle=DASHES[index % len(DASHES)],
    )  # fmt: skip


@theme()
def models_by_test_sets(
    models: Sequence[str],
    test_sets: Sequence[str],
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    paper: ArrayLike | None = None,
    title: str = "",
) -> Figure:
    """Draw the accuracy of each model (row) on each test set (column) as a map (paper table 7).

    Each field says the value, its interval, and the paper's value where given. Shares between 0
    and 1; a paper's value that does not exist is nan.
    """
    named = {"values": values, "low": low, "high": high} | (
        {} if paper is None else {"paper": paper}
    )
    matrices = {name: np.asarray(matrix, dtype=float) for name, matrix in named.items()}
    wanted = (len(models), len(test_sets))
    for name, matrix in matrices.items():
        if matrix.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}; got {matrix.shape}.")
    share, lower, upper = (100 * matrices[name] for name in ("values", "low", "high"))
    if not ((lower <= share) & (share <= upper)).all():
        raise ValueError("each value must lie inside its interval low..high; check their order.")
    figure = heatmap(
        share, "test set", "reward model", "pairs in the right order (%)",
        rows=models, columns=test_sets, title=title,
    )  # fmt: skip
    image = figure.axes[0].images[0]
    for (row, column), value in np.ndenumerate(share):
        text = f"{value:.1f} %\n[{lower[row, column]:.1f}, {upper[row, column]:.1f}]"
        if paper is not None and np.isfinite(matrices["paper"][row, column]):
            text += f"\npaper {100 * matrices['paper'][row, column]:.1f} %"
        dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
        figure.axes[0].text(
            column, row, text, ha="center", va="center", color="white" if dark else "black"
        )
    return figure


LIGHTS = {
    "green": ("#bfe3c0", "ok"),
    "amber": ("#ffdf9e", "look"),
    "red": ("#f3b0a8", "STOP"),
    "": ("0.93", "-"),
}
"""Ground and word of each state; the word says it without colour too. "" is not measured."""


@theme()
def best_of_n_curves(
    curves: Mapping[str, Band], ylabel: str, *, n: ArrayLike | None = None, title: str = ""
) -> Figure:
    """Draw what the best of N samples is worth, N in powers of two on the axis (paper figure 7).

    Args:
        curves: (values, low, high) by name, such as "max", "median", "gold of the chosen".
        ylabel: With its unit.
        n: Numbers of samples; 1, 2, 3, ... if left out.
    """
    length = np.size(next(iter(curves.values()))[0]) if curves else 0
    count = np.arange(1, length + 1) if n is None else np.asarray(n, dtype=float)
    bands = bands_of(curves, count.size, "a number of samples")
    figure = lines(
        {label: (count, *band) for label, band in bands.items()},
        "samples a prompt, N", ylabel, title=title, xscale="log",
    )  # fmt: skip
    axis = figure.axes[0].xaxis
    powers = 2 ** np.arange(0, np.log2(count.max()) + 1e-9)
    axis.set_major_locator(FixedLocator(powers.tolist()))
    axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axis.set_minor_locator(NullLocator())
    return figure


@theme()
def rewards_by_round(
    rounds: Sequence[str],
    series: Mapping[str, Band],
    ylabel: str,
    *,
    reference: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw several series over the rounds of rejection sampling, with intervals.

    Args:
        rounds: Their names, such as "SFT", "V1", "V2".
        series: (values, low, high) by name, such as two pools or the random control.
        ylabel: With its unit.
        reference: Labelled horizontal lines.
    """
    bands = bands_of(series, len(rounds), "a round")
    figure, axes = new_figure()
    for index, (label, band) in enumerate(bands.items()):
        apart = 0.06 * (index - (len(bands) - 1) / 2)  # so that intervals do not cover each other
        draw_points(axes, index, label, np.arange(len(rounds)) + apart, list(band))
    for index, (label, value) in enumerate((reference or {}).items()):
        axes.axhline(value, color="0.35", linestyle=DASHES[(index + 1) % 4], lw=1.5, label=label)
    axes.set_xticks(range(len(rounds)), rounds)
    label_axes(axes, "round", ylabel, title)
    legend_below(figure, axes)
    return figure


@theme()
def frontier(
    runs: Mapping[float, Sequence[ArrayLike]],
    *,
    proxy_label: str = "reward model's score (raw)",
    gold_label: str = "gold score (0 to 1)",
    start: tuple[float, float] | None = None,
    paths: bool = True,
    title: str = "",
) -> Figure:
    """Draw proxy and gold over the root of KL, one path a beta; both panels share the x axis.

    A path rises in the left panel as long as the policy finds more of what the reward model
    likes. Where it bends down in the right one, that is over-optimisation.

    Args:
        runs: For each beta (kl, proxy, gold) at some moments of training, KL in nats an answer.
        proxy_label: What the left panel shows, with its unit.
        gold_label: What the right panel shows.
        start: Proxy and gold of the policy before training, at KL 0; drawn as a star.
        paths: Join the points of a beta; without, they may be the ends of several runs.
    """
    if not runs:
        raise ValueError("at least one run is needed; got none.")
    figure, axes = new_figure(10.0, 4.4, columns=2, sharex=True)
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.92, len(runs)))
    for index, (beta, arrays) in enumerate(sorted(runs.items())):
        kl, *values = (np.asarray(array, dtype=float) for array in arrays)
        if kl.ndim != 1 or [value.shape for value in values] != [kl.shape] * 2:
            raise ValueError(f"beta {beta:g} must have kl, proxy and gold of one length.")
        if (kl < -1e-6).any():
            raise ValueError(
                f"beta {beta:g}: KL must be at least 0 to have a root; got {kl.min():.3g}. Use the "
                "exact KL or k3, or average k1 over more answers."
            )
        for axis, value in zip(axes, values, strict=True):
            axis.plot(
                np.sqrt(kl.clip(0)), value, color=shades[index], label=f"beta {beta:g}", ms=7,
                marker=MARKERS[index % len(MARKERS)],
                linestyle=DASHES[index % len(DASHES)] if paths else "",
            )  # fmt: skip
    for axis, label, at in zip(axes, (proxy_label, gold_label), start or (None, None), strict=True):
        if at is not None:
            axis.plot(0, at, "*", color="black", ms=15, label="before")
        label_axes(axis, "root of KL from the reference (nats$^{1/2}$)", label)
    legend_below(figure, axes[0], columns=6)
    figure.suptitle(title, fontsize=14)
    return figure


@theme()
def traffic_lights(
    diagnostics: Sequence[str],
    runs: Sequence[str],
    states: Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]],
    *,
    title: str = "",
) -> Figure:
    """Draw a table of diagnostics (rows) of runs (columns): a colour, a word and a number each.

    Args:
        diagnostics: Names of the rows, such as "KL (nats)".
        runs: Names of the columns.
        states: "green", "amber", "red" or "" (not measured), one a field, by rows.
        texts: What was measured, one a field.
    """
    wanted = (len(diagnostics), len(runs))
    for name, table in (("states", states), ("texts", texts)):
        if (len(table), *{len(row) for row in table}) != wanted:
            raise ValueError(
                f"{name} must be {wanted[0]} rows of {wanted[1]}; got rows of "
                f"{[len(row) for row in table]}."
            )
    unknown = sorted({state for row in states for state in row} - set(LIGHTS))
    if unknown:
        raise ValueError(f"a state must be one of {[*LIGHTS]}; got {unknown}.")
    figure, axes = new_figure(2.6 + 1.9 * wanted[1], 1.1 + 0.62 * wanted[0])
    for y, (row, words) in enumerate(zip(states, texts, strict=True)):
        for x, (state, text) in enumerate(zip(row, words, strict=True)):
            ground, word = LIGHTS[state]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=ground, ec="white", lw=3))
            axes.text(x, y, f"{word}: {text}" if text else word, ha="center", va="center")
    axes.set_xticks(range(wanted[1]), runs)
    axes.set_yticks(range(wanted[0]), diagnostics)
    axes.set(xlim=(-0.5, wanted[1] - 0.5), ylim=(wanted[0] - 0.5, -0.5))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return figure


@theme()
def token_reward_bars(
    pieces: Sequence[str], kl_part: ArrayLike, score_part: ArrayLike, *, title: str = ""
) -> Figure:
    """Draw the reward of each token of one answer in its two parts, and their running sum.

    Args:
        pieces: The answer's tokens.
        kl_part: -beta times the log-ratio of each.
        score_part: The score, at the last token, else 0.
    """
    kl, score = (np.asarray(part, dtype=float) for part in (kl_part, score_part))
    if not kl.shape == score.shape == (len(pieces),) or not pieces:
        raise ValueError(
            f"both parts need one number a token; got {len(pieces)} tokens and shapes {kl.shape} "
            f"and {score.shape}."
        )
    figure, axes = new_figure(max(7.0, 1.5 + 0.5 * len(pieces)), 4.4)
    at = np.arange(len(pieces))
    axes.axhline(0, color="black", lw=1)
    _stacked(axes, at, kl, score)
    axes.plot(at, np.cumsum(kl + score), "k--o", ms=5, lw=1.5, label="running sum")
    axes.set_xticks(at, pieces, rotation=90 if len(pieces) > 8 else 0)
    label_axes(axes, "token", "reward (whitened score units)", title)
    legend_below(figure, axes)
    return figure


def _stacked(axes: Axes, at: np.ndarray, kl: np.ndarray, score: np.ndarray) -> None:
    """Draw both parts; what has one sign is put on top of each other, else on either side of 0."""
    below = np.where(np.sign(kl) == np.sign(score), kl, 0.0)
    axes.bar(at, kl, width=0.7, label="divergence (-beta log-ratio)")
    axes.bar(at, score, width=0.7, bottom=below, label="score", hatch="//", edgecolor="white")
