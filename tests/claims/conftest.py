"""Toy artifacts that claims may add runs to, and one way to measure and judge a claim on them."""

import dataclasses
import json
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.recipes import toy


@pytest.fixture
def toy_copy(toy_root, tmp_path, monkeypatch, one_thread):
    """Train what is missing in this process: new ones take longer than toys."""
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(copytree(toy_root, tmp_path / "artifacts")))

    def one_by_one(requests):
        return [pipeline.artifact(*request, device="cpu", bar=False) for request in requests]

    monkeypatch.setattr(pipeline, "artifacts", one_by_one)


@pytest.fixture
def measure():
    """Measure a claim: it needs the runs that it asks for, and its judges find every key."""

    def measured(number):
        claim = CLAIMS[number]
        first = claim.measure(toy(), 0)
        assert not [run for run in claim.requests(toy(), [0]) if pipeline.missing(*run)]
        json.dumps(dict(first.values))
        others = [
            dataclasses.replace(first, values={k: s * v for k, v in first.values.items()}, seed=i)
            for i, s in ((1, 0.99), (2, 0.98))
        ]
        claim.verdict([first, *others])
        return first.values

    return measured
