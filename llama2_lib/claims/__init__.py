"""Floor 9: the paper's claims, declared before they are measured, and the ledger of verdicts."""

from llama2_lib.claims.catalogue import CLAIMS, grid_requests
from llama2_lib.claims.claim import (
    CannotShow,
    Claim,
    Measurement,
    Outcome,
    Threshold,
    Trust,
    Verdict,
    threshold,
)
from llama2_lib.claims.ledger import Result, read_ledger, render_table, run_claims, write_ledger

__all__ = [
    "CLAIMS",
    "CannotShow",
    "Claim",
    "Measurement",
    "Outcome",
    "Result",
    "Threshold",
    "Trust",
    "Verdict",
    "grid_requests",
    "read_ledger",
    "render_table",
    "run_claims",
    "threshold",
    "write_ledger",
]
