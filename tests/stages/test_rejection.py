"""Rejection sampling: what is kept of the samples, what a round trains on, what a file holds."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from llama2_lib.model.chat import Reply
from llama2_lib.stages.rejection import (
    Sample,
    best,
    best_temperature,
    chosen,
    distinct,
    encoded,
    rescored,
)
from llama2_lib.storage import read_rows, write_rows


def asked(*contents):
    """A dialog of these messages, from the user and the assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def entry(prompt, answer, score=0.0, number=1):
    return Sample(asked(prompt), prompt == "b", answer, number, score)


def random_pool(n_prompts=5, n_samples=4, number=1):
    source = np.random.default_rng(number)
    return [
        entry(f"p{p}", f"answer {number} {p} {k}", float(source.normal()), number)
        for p in range(n_prompts)
        for k in range(n_samples)
    ]


def said(text, ended=True, ids=(1, 2)):
    return Reply(text, [*ids], ended)


def test_answers_that_ended_stay_each_once_in_order():
    answers = [
        said("two"), said("cut off", False), said("one"), said("two", ids=[7]), said(""),
        said("three"), said("one", ids=[8]), said("two ", False),
    ]  # fmt: skip
    assert distinct(answers) == [answers[0], answers[2], answers[5]]
    assert distinct([said("x", False), said("")]) == []


def test_a_text_that_was_cut_once_and_ended_once_stays():
    assert distinct([said("same", False), said("same")]) == [said("same")]


def test_the_best_entry_of_every_prompt_is_kept_and_of_equal_ones_the_first():
    rows = [
        entry("b", "low", 1.0), entry("a", "first", 2.0), entry("b", "high", 5.0),
        entry("a", "second", 2.0), entry("b", "again", 5.0), entry("c", "only", -9.0),
    ]  # fmt: skip
    assert [e.answer for e in best(rows)] == ["high", "first", "only"]
    assert best([]) == []


def test_a_prompt_is_its_whole_dialog():
    short = Sample(asked("hello"), False, "x", 1, 1.0)
    long = Sample(asked("hello", "hi", "hello"), False, "y", 1, 2.0)
    assert best([short, long]) == [short, long]
    assert short.key != long.key
    assert best([short, short._replace(round=3, score=4.0)])[0].round == 3


def test_permuted_samples_and_prompts_permute_the_outputs_only():
    rows = random_pool()
    wanted = {e.key: e for e in best(rows)}
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(rows))
        found = best([rows[i] for i in order])
        assert {e.key: e for e in found} == wanted
        assert [e.key for e in found] == list(dict.fromkeys(rows[i].key for i in order))


def test_the_control_takes_one_a_prompt_by_the_seed_and_never_looks_at_scores():
    rows = random_pool(n_prompts=40)
    found = chosen(rows, "random", seed=0)
    assert [e.key for e in found] == list(dict.fromkeys(e.key for e in rows))
    assert all(e in rows for e in found)
    assert chosen(rows, "random", seed=0) == found
    assert chosen(rows, "random", seed=1) != found
    turned = [e._replace(score=-e.score) for e in rows]
    again = chosen(turned, "random", seed=0)
    assert [e.answer for e in again] == [e.answer for e in found]
    assert chosen(turned, "best", seed=0) != chosen(rows, "best", seed=0)


def test_the_control_takes_every_sample_equally_often():
    rows = random_pool(n_prompts=1)
    counts = np.zeros(4)
    for seed in range(2000):
        counts[rows.index(chosen(rows, "random", seed)[0])] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # 5 standard errors


def test_with_one_sample_best_and_random_are_the_same():
    rows = random_pool(n_samples=1)
    assert chosen(rows, "best", 0) == chosen(rows, "random", 0) == rows
    many = random_pool(n_samples=4)
    assert chosen(many, "best", 0) != chosen(many, "random", 0)


def by_length(rows):
    return np.array([float(len(e.answer)) for e in rows])


def test_scores_of_older_models_never_rank():
    # the model of round 1 had its zero 100 higher
    rows = [entry("a", "old", 103.0, 1), entry("a", "newer one", 2.0, 2)]
    assert best(rows)[0].answer == "old"
    assert best(rescored(rows, by_length))[0].answer == "newer one"
    found = rescored(rows, by_length)
    assert [e.score for e in found] == [3.0, 9.0]
    assert [e._replace(score=0.0) for e in found] == [e._replace(score=0.0) for e in rows]
    assert rescored([], by_length) == []
    with pytest.raises(ValueError, match="argument"):
        rescored(rows, lambda entries: np.zeros(3))


def test_with_rescoring_the_pool_never_gets_worse():
    """The best of the old pool stands again: scored by one model, the pool cannot fall."""
    pool, means = [], []
    for number in (1, 2, 3, 4):
        drawn = random_pool(n_samples=3, number=number)
        offset = [e._replace(score=e.score - 10 * number) for e in drawn]  # another zero a round
        before = {e.key: e.answer for e in pool}
        pool = best(rescored([*pool, *offset], by_hash))
        assert {e.key for e in pool} >= set(before)
        means.append({e.key: e.score for e in pool})
    for earlier, later in itertools.pairwise(means):
        assert all(later[key] >= score for key, score in earlier.items())
    assert means[-1] != means[0]
    rounds = {e.round for e in pool}
    assert len(rounds) > 1  # old answers stay where they are better


def by_hash(rows):
    return np.array([float(sum(map(ord, e.answer)) * 7919 % 101) for e in rows])


def test_the_temperature_with_the_highest_last_point_wins_and_of_equal_ones_the_lowest():
    curves = {1.2: [0.0, 2.0], 0.7: [1.0, 2.0], 1.0: [1.5, 1.9]}
    assert best_temperature(curves) == 0.7
    assert best_temperature(curves | {1.5: [-5.0, 2.1]}) == 1.5


def test_only_the_chosen_answer_is_learned(tokenizer):
    rows = [
        Sample(asked("Hello!", "Good morning.", "Who are you?"), False, "A friend.", 1, 0.0),
        entry("a", "Yes."),
    ]
    for (ids, mask), row in zip(encoded(rows, tokenizer), rows, strict=True):
        n_turns = len(row.dialog) // 2 + 1
        assert ids.count(tokenizer.bos_id) == ids.count(tokenizer.eos_id) == n_turns
        targets = [token for token, target in zip(ids, mask, strict=True) if target]
        assert targets[-1] == tokenizer.eos_id
        assert tokenizer.decode(targets).strip() == row.answer
        assert mask == sorted(mask)  # one block, at the end
    assert encoded([], tokenizer) == []


def test_a_pool_survives_the_file(tmp_path):
    rows = [
        entry("a", 'line one\nline "two"\u2028\u00e9 \u4e16', -0.1),
        Sample(asked("x", "y", "z"), True, "no", 3, 1e-17),
    ]
    write_rows(tmp_path / "pool.jsonl", rows)
    assert read_rows(tmp_path / "pool.jsonl", Sample) == rows
    assert len((tmp_path / "pool.jsonl").read_bytes().splitlines()) == 2


SCRIPT = """
import json
from llama2_lib.model.chat import Reply
from llama2_lib.stages.rejection import Sample, best, chosen, distinct
rows = [
    Sample([{"role": "user", "content": f"p{k % 7}"}], False, f"a{k}", 1, float(k * 37 % 11))
    for k in range(60)
]
texts = distinct([Reply(f"t{k * 13 % 17}", [k], k % 5 > 0) for k in range(60)])
found = [best(rows), chosen(rows, "random", 3), [t.text for t in texts]]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_salt_of_pythons_hashes_changes_nothing():
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for salt in ("0", "1")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0])[0]) == 7
