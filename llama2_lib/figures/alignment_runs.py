"""Figures of policies: best of N, rounds, the reward-KL frontier, diagnostics, one answer."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from llama2_lib.figures.alignment import Band, bands_of, draw_points, legend_below
from llama2_lib.figures.curves import DASHES, MARKERS, lines
from llama2_lib.figures.theme import label_axes, new_figure, theme

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

    Raises:
        ValueError: There is no curve, or lengths differ.
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

    Raises:
        ValueError: There is no series, or lengths differ.
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

    Raises:
        ValueError: There is no run, lengths differ, or a KL is negative.
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

    Raises:
        ValueError: A table has other sizes, or a state is unknown.
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
    pieces: Sequence[str],
    kl_part: ArrayLike,
    score_part: ArrayLike,
    *,
    title: str = "",
) -> Figure:
    """Draw the reward of each token of one answer in its two parts, and their running sum.

    Args:
        pieces: The answer's tokens.
        kl_part: -beta times the log-ratio of each.
        score_part: The score, at the last token, else 0.

    Raises:
        ValueError: There is no token, or lengths differ.
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
