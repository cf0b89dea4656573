"""A claim is shown in two halves: what was declared, and later what came out."""

import re
from dataclasses import replace

import pytest

from llama2_lib.claims.ledger import CLAIMS, recorded
from llama2_lib.widgets import claim as cards
from llama2_lib.widgets import show_claim, show_prediction

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture
def shown(monkeypatch):
    texts = []
    monkeypatch.setattr(cards, "display", lambda markdown: texts.append(markdown.data))
    return texts


def rows(text):
    head, rule, *lines = text.splitlines()
    assert rule == "|---|---|"
    return head, dict(line.strip("| ").split(" | ", 1) for line in lines)


def test_the_prediction_gives_nothing_away(shown):
    show_prediction(15)
    head, found = rows(*shown)
    assert head == "| claim 15 | |"
    assert list(found) == ["question", "paper", "our prediction", "rule"]
    assert found["question"] == CLAIMS[15].statement
    assert "(printed in the paper; section 3.2.2)" in found["paper"]
    assert CLAIMS[15].threshold.split("(")[0].strip() in found["rule"]
    verdict = recorded(15).verdict
    assert str(verdict.outcome) not in shown[0]
    assert verdict.reason.split(";")[0] not in shown[0]


def test_the_answer_has_the_numbers_of_the_rule_and_the_verdict(shown):
    result = show_claim(15)
    assert result == recorded(15)
    _, found = rows(*shown)
    assert list(found) == ["question", "paper", "ours", "measured on", "verdict"]
    told, kept = found["ours"], "<br>".join(result.verdict.reason.split("; "))
    assert NUMBER.sub("#", told) == NUMBER.sub("#", kept)
    pairs = zip(NUMBER.findall(told), NUMBER.findall(kept), strict=True)
    assert all(float(short) == pytest.approx(float(long), rel=5e-3) for short, long in pairs)
    assert len(told) < len(kept), "three digits say it"
    assert found["measured on"].startswith(f"{len(result.measurements)} seeds")
    assert found["verdict"] == f"**{result.verdict.outcome}**"


def test_a_record_of_another_recipe_says_so(shown, monkeypatch):
    show_claim(15)
    monkeypatch.setattr(cards, "is_current", lambda result, recipe: True)
    show_claim(15)
    assert not rows(shown[1])[1]["measured on"].endswith("chain's")
    monkeypatch.setattr(cards, "is_current", lambda result, recipe: False)
    show_claim(15)
    assert rows(shown[2])[1]["measured on"].endswith(
        ", of an earlier recipe than the released chain's"
    )


def test_a_record_of_another_declaration_is_refused(monkeypatch):
    other = {15: replace(CLAIMS[15], prediction="It rains.")}
    monkeypatch.setattr(cards, "CLAIMS", other)
    with pytest.raises(ValueError, match="llama2 claims 15 --write"):
        show_claim(15)
