"""From a two-second speed reading to the minutes that each part of the course will take."""

# What the reference machine (2 cores, fp32) needed, in seconds, and its own speed reading, all
# from one quiet run. None: not measured yet, so no estimate is printed.
REFERENCE_TOKENS_PER_SECOND: float | None = 23_100
REFERENCE_SECONDS: dict[str, float | None] = {
    "chain and grids, from nothing": 1200,
    "notebook 00": 9,
    "notebook 01": 10,
    "notebook 02": 6,
    "notebook 03": 24,
    "notebook 04": 25,
    "notebook 05": 48,
    "notebook 06": 27,
    "notebook 07": 53,
    "notebook 08": 41,
    "notebook 09": 71,
    "notebook 10": 73,
}


def time_estimates(
    tokens_per_second: float | None,
    reference_rate: float | None = REFERENCE_TOKENS_PER_SECOND,
    reference_seconds: dict[str, float | None] = REFERENCE_SECONDS,
) -> dict[str, float]:
    """Scale the reference machine's seconds by the ratio of the two speed readings."""
    if tokens_per_second is None or reference_rate is None:
        return {}
    factor = reference_rate / tokens_per_second
    return {name: factor * s for name, s in reference_seconds.items() if s is not None}


def duration(seconds: float) -> str:
    """Return a length of time as people say it, rounded as an estimate deserves."""
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min"
