import re
from collections import Counter
from itertools import pairwise

import pytest

from llama2_lib.world.dialogs import MOST_TURNS, SYSTEM_FRACTION, dialogs
from llama2_lib.world.facts import question_forms


@pytest.fixture(scope="module")
def sample(world):
    return list(dialogs(world, 2, 2500))


def test_roles_alternate_and_an_answer_ends_each_dialog(sample):
    for dialog in sample:
        roles = [message["role"] for message in dialog]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 1 <= len(roles) // 2 <= MOST_TURNS
        for message in dialog:
            assert set(message) == {"role", "content"}
            assert message["content"].strip() == message["content"] != ""
            assert not re.search(r"\[/?INST\]|<</?SYS>>|[{}|]|  ", message["content"])


def test_lengths_and_system_messages_vary(sample):
    turns = Counter(sum(m["role"] == "user" for m in dialog) for dialog in sample)
    assert set(turns) == set(range(1, MOST_TURNS + 1))
    with_system = sum(dialog[0]["role"] == "system" for dialog in sample) / len(sample)
    assert with_system == pytest.approx(SYSTEM_FRACTION, rel=0, abs=0.04)


def test_answers_are_right(world, sample):
    asked = {text: fact for fact, forms in question_forms(world).items() for text in forms}
    checked = Counter()
    for dialog in sample:
        for user, assistant in pairwise(dialog):
            if user["role"] != "user":
                continue
            question, answer = user["content"], assistant["content"].lower()
            if question in asked:
                assert re.search(rf"\b{asked[question].value.lower()}\b", answer), dialog
                checked["fact"] += 1
            elif match := re.search(r"(\d+) (plus|minus) (\d+)", question):
                n, m = int(match[1]), int(match[3])
                result = n + m if match[2] == "plus" else n - m
                assert re.search(rf"is {result}\.", answer), dialog
                checked["sum"] += 1
    assert checked["fact"] > 1500
    assert checked["sum"] > 400


def test_system_instructions_are_obeyed(sample):
    obeyed = Counter()
    for dialog in sample:
        system = dialog[0]["content"] if dialog[0]["role"] == "system" else ""
        replies = [m["content"] for m in dialog if m["role"] == "assistant"]
        if "capital" in system:
            assert all(reply == reply.upper() for reply in replies)
            obeyed["capitals"] += 1
        elif match := re.search(r"(end|last).*: (.*)$", system):
            assert all(reply.endswith(match[2]) for reply in replies)
            obeyed["ending"] += 1
        elif match := re.search(r"(start|first).*: (.*)$", system):
            assert all(reply.startswith(match[2]) for reply in replies)
            obeyed["beginning"] += 1
        elif not system:
            obeyed["free"] += any(reply != reply.upper() for reply in replies)
    assert min(obeyed[kind] for kind in ("capitals", "ending", "beginning", "free")) > 80
