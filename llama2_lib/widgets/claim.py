"""A claim as learners meet it: first what is asked and predicted, then what came out."""

import re

from IPython.display import Markdown, display

from llama2_lib.claims.ledger import CLAIMS, Result, is_current, recorded
from llama2_lib.recipes import nano

_digits = re.compile(r"-?\d+\.\d{3,}")
"""More than the intervals leave certain."""


def show_prediction(number: int) -> None:
    """Show what a claim asks, what the paper found, what we predicted and by which rule."""
    claim = CLAIMS[number]
    rows = {
        "question": claim.statement,
        "paper": f"{claim.paper_value} ({claim.paper_trust}; section {claim.section})",
        "our prediction": claim.prediction,
        "rule": claim.threshold,
    }
    _table(number, rows)


def show_claim(number: int) -> Result:
    """Show what the ledger holds of a claim, beside the paper's number, and return it.

    The rule's own numbers and the verdict stand in the table; all others that were measured are in
    the record that is returned (print it).

    Raises:
        ValueError: The ledger holds no such claim, or it was declared otherwise when it was
            measured.
    """
    claim, result = CLAIMS[number], recorded(number)
    if result.declared != claim.declaration():
        raise ValueError(
            f"the ledger holds claim {number} as it was declared before; measure it again: "
            f"llama2 claims {number} --write data/claims.json"
        )
    n_seeds, verdict = len(result.measurements), result.verdict
    ours = _digits.sub(lambda number: f"{float(number[0]):.3g}", verdict.reason)
    of_another = not is_current(result, nano())
    rows = {
        "question": claim.statement,
        "paper": claim.paper_value,
        "ours": "<br>".join(ours.removeprefix("undecided: ").split("; ")),
        "measured on": f"{n_seeds} seed{'s' * (n_seeds != 1)}"
        + ", of an earlier recipe than the released chain's" * of_another,
        "verdict": f"**{verdict.outcome}**",
    }
    _table(number, rows)
    return result


def _table(number: int, rows: dict[str, str]) -> None:
    lines = [f"| claim {number} | |", "|---|---|"]
    for name, text in rows.items():
        lines.append(f"| {name} | {' '.join(text.split()).replace('|', '&#124;')} |")
    display(Markdown("\n".join(lines)))
