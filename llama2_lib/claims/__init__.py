"""Floor 9: the paper's claims, declared before they are measured, and the ledger of verdicts.

One file a section of the paper holds its claims and how they are measured. A new claim is an entry
of the `CLAIMS` of its section.
"""

from llama2_lib.claims.claim import CannotShow, Measurement, Must, Outcome
from llama2_lib.claims.ledger import (
    CLAIMS,
    Result,
    grid_requests,
    recorded,
    run_claims,
    write_ledger,
)

__all__ = [
    "CLAIMS", "CannotShow", "Measurement", "Must", "Outcome", "Result", "grid_requests", "recorded",
    "run_claims", "write_ledger",
]  # fmt: skip
