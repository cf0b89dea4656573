"""Every known mistake is rejected and named, and so is what learners write besides."""

from inspect import isfunction, unwrap

import numpy as np
import pytest
import torch

from llama2_lib.teaching import (
    attention,
    emergent,
    evaluation,
    ghost_attention,
    ppo,
    pretraining,
    rejection,
    reward,
    safety,
    sft,
    tokenizer,
    transformer,
)
from llama2_lib.teaching.check import CheckFailed, diagnose, on, slips

MODULES = [tokenizer, transformer, attention, pretraining, sft]
MODULES += [reward, rejection, ppo, ghost_attention, safety, evaluation, emergent]
CHECKS = [  # each check, and the table of mistakes that it names
    (check, module, table)
    for module in MODULES
    for check in vars(module).values()
    if isfunction(check) and check.__module__ == module.__name__
    for table in unwrap(check).__code__.co_names
    if table.endswith("_MISTAKES")
] + [(attention.multi_head, attention, "ATTENTION_MISTAKES")]
TILED = "query head h reads key/value head h % kv_heads, not h // group (tiled, not repeated)"
CASES = [
    pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
    for check, module, table in CHECKS
    for name, wrong in getattr(module, table).items()
    # with a key/value head for each query head, to tile and to repeat is the same
    if (check, name) != (attention.multi_head, TILED)
]


@pytest.mark.parametrize(("check", "name", "wrong"), CASES)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def test_no_table_is_forgotten_and_no_mistake_lost():
    names = {(m, name) for m in MODULES for name in vars(m) if name.endswith("_MISTAKES")}
    assert {(module, table) for _, module, table in CHECKS} == names
    assert len(CHECKS) == 55
    assert sum(len(getattr(module, name)) for module, name in names) >= 558


COMPLETED = {  # two texts that slips are edits of lack something that their tables do not care for
    "_ids": lambda text, tok: [tok.bos_id, *tokenizer._ids(text, tok)],
    "_shaped": lambda *given: ppo._shaped(*given).detach(),
}


@pytest.mark.parametrize(
    ("check", "module", "table"), CHECKS, ids=lambda each: getattr(each, "__name__", each)
)
def test_what_slips_are_edits_of_is_right(check, module, table):
    (name,) = {wrong.__name__ for wrong in getattr(module, table).values()}
    check(COMPLETED.get(name, getattr(module, name)))


def twice(x):
    """A right function: x, 2 times."""
    return x + x


def test_a_slip_is_the_right_code_with_one_edit():
    made = slips(twice)("""
it is squared || + => *
it is three times as much, told
    on two lines || return x => return x + x
there is no x, and minus || x + => ;; return => return -
it is whole || twice(x) / 1
""")
    assert {name: wrong(5) for name, wrong in made.items()} == {
        "it is squared": 25,
        "it is three times as much, told on two lines": 15,
        "there is no x, and minus": -5,
        "it is whole": 10,
    }
    for edit in ("x => y", "nothing => x"):
        with pytest.raises(AssertionError, match="must stand once"):
            slips(twice)(f"too many or none || {edit}")


def turned(x, positions, theta, join):
    """Rotary positions with real numbers; `join` puts the two results of a pair together."""
    at = torch.outer(positions.float(), theta ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1]))
    cos, sin, a, b = at.cos()[:, None], at.sin()[:, None], x[..., ::2], x[..., 1::2]
    return join([a * cos - b * sin, a * sin + b * cos])


def nats(logits, ids):
    return -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def whitened(x, mask, **std):
    return (x - x[mask].mean()) / x[mask].std(**std)


def numbered(number):
    def row(examples, length):
        ids, mask, document = sft._one_row(examples, length)
        return ids, mask, document.masked_fill(document == len(examples), number)

    return row


LEARNERS = [  # what was written in trials and had no name
    (sft.masked_loss, lambda z, i, m: -nats(z, i[:, 1:])[m[:, 1:]].mean(), "the sign is wrong"),
    (sft.masked_loss, lambda z, i, m: -(-nats(z, i[:, 1:])).exp()[m[:, 1:]].mean(), "its log"),
    (sft.masked_loss, lambda z, i, m: nats(z, i[:, :-1])[m[:, 1:]].mean(), "on its own token"),
    (sft.masked_loss, lambda z, i, m: nats(z, i[:, :-1])[m[:, :-1]].mean(), "on its own token"),
    (sft.packed_row, numbered(0), "the number of the first dialog"),
    (sft.packed_row, numbered(1), "like no mistake known here"),
    (sft.loss_mask, lambda *given: (i := sft.lay_out(*given)[0], [x == 2 for x in i]), "differ by"),
    (ppo.whiten, lambda x, m: whitened(x, m, correction=0) * m, "equal values give NaN, 0 / 0;"),
    (ppo.whiten, lambda x, m: whitened(x, m, correction=0).masked_fill(~m, 0), "equal values"),
    (ppo.whiten, lambda x, m: torch.where(m, whitened(x, m), 0.0), "n - 1, not by n"),
    (transformer.rotary, lambda *given: turned(*given, lambda p: torch.cat(p, -1)), "halves (cat)"),
    (ppo.ppo_policy_loss, lambda *given: ppo._surrogate(*given) / 2, "each is 0.5 times what"),
]


@pytest.mark.filterwarnings("ignore:std")  # of one value, with n - 1
@pytest.mark.parametrize(("check", "wrong", "words"), LEARNERS)
def test_what_learners_write_is_told_in_words(check, wrong, words):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert words in str(failure.value)


def overwriting_norm(x, gain, eps):
    x *= (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x.mul_(gain)


def overwriting_block(x, attend, feed, norm_1, norm_2):
    x += attend(norm_1(x))
    return x.add_(feed(norm_2(x)))


def overwriting_sum(gradients, counts):
    return gradients[0].add_(gradients[1]).add_(gradients[2]).div_(sum(counts))


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (transformer.rms_norm, overwriting_norm),
        (transformer.block, overwriting_block),
        (pretraining.accumulation, overwriting_sum),
        (pretraining.pack, lambda documents, n: torch.tensor(documents.pop()[:6]).expand(7, 6)),
        (rejection.expected_best, lambda proxy, value, n: value.sort(axis=1) or value[:, -1]),
        (safety.gamma, lambda queries, budget: queries.clear() or 2.0),
    ],
)
def test_code_that_changes_what_it_is_given_is_refused(check, wrong):
    with pytest.raises(CheckFailed, match=r"changed argument . in place"):
        check(wrong)


def test_a_change_is_seen_wherever_it_is_made():
    given = ({"w": torch.ones(2)}, [[1, 2], np.zeros(3)], (torch.zeros(1),), "text")
    assert on(*given)(lambda *parts: parts[3]) == "text"
    for change in (
        lambda weights, *_: weights["w"].zero_(),
        lambda _, rows, *__: rows[0].append(3),
        lambda _, rows, *__: rows[1].fill(1.0),
        lambda _, __, pair, ___: pair[0].add_(1),
        lambda weights, *_: weights.pop("w"),
    ):
        with pytest.raises(CheckFailed, match="in place"):
            on(*given)(change)
    assert given[0]["w"].tolist() == [1.0, 1.0]


def test_values_that_are_lost_are_counted():
    with pytest.raises(CheckFailed, match="2 of 3 values are NaN or infinite, like no mistake"):
        diagnose(on(), lambda: torch.tensor([1, torch.nan, torch.inf]), torch.ones(3), {})
    with pytest.raises(CheckFailed, match="differ by up to 1, like no mistake known here"):
        diagnose(on(), lambda: ~torch.eye(2).bool(), torch.eye(2).bool(), {})


def test_infinity_where_it_is_right_is_right():
    masked = torch.tensor([0.0, -torch.inf])
    diagnose(on(), lambda: masked, masked, {})
    with pytest.raises(CheckFailed, match="differ by up to"):
        diagnose(on(), lambda: masked.clamp(min=-9.0), masked, {})
    with pytest.raises(CheckFailed, match="differ by up to 1,"):
        diagnose(on(), lambda: masked + 1, masked, {})
