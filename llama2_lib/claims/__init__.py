"""Floor 9: the paper's claims, declared before they are measured, and the ledger of verdicts.

One file a section of the paper holds its claims and how they are measured. A new claim is an entry
of the `CLAIMS` of its section.
"""
