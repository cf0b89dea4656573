"""Floor 9: the paper's claims, declared before they are measured, and the ledger of verdicts."""

from llama2_lib.claims.catalogue import CLAIMS, course_requests, grid_requests, of_course
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
from llama2_lib.claims.ledger import (
    Result,
    read_ledger,
    recorded,
    render_table,
    run_claims,
    write_ledger,
)

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
    "course_requests",
    "grid_requests",
    "of_course",
    "read_ledger",
    "recorded",
    "render_table",
    "run_claims",
    "threshold",
    "write_ledger",
]
