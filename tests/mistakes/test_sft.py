"""Every known mistake in fine-tuning is rejected and named; right code passes."""

import pytest
import torch

from llama2_lib.objectives.language import masked_loss
from llama2_lib.teaching import sft
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.text.dialog import encode_example
from llama2_lib.training.dialog_batches import PackedDialogs, check_example


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (sft.loss_mask, sft.MASK_MISTAKES),
        (sft.masked_loss, sft.LOSS_MISTAKES),
        (sft.packed_row, sft.ROW_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


class Numbers:
    """A tokenizer of numbers between spaces, so that `encode_example` can be checked as it is."""

    def encode(self, text, bos=False, eos=False):
        words = text.replace("[INST]", "").replace("[/INST]", "").split()
        return [sft.BOS] * bos + [int(word) for word in words] + [sft.EOS] * eos


def by_encode_example(turns, bos, eos):
    dialog = [
        {"role": role, "content": " ".join(map(str, part))}
        for turn in turns
        for role, part in zip(("user", "assistant"), turn, strict=True)
    ]
    return encode_example(dialog, Numbers())


def by_places(turns, bos, eos):
    ids, mask = [], []
    for prompt, answer in turns:
        ids.extend([bos, *prompt, *answer, eos])
        mask.extend([False] * (len(prompt) + 1))
        mask.extend([True] * (len(ids) - len(mask)))
    return ids, torch.tensor(mask)


def by_state(turns, bos, eos):
    """A token is a target if the answer has begun, and it has at the end of the prompt."""
    ids = [t for prompt, answer in turns for t in (bos, *prompt, *answer, eos)]
    prompts = {token for prompt, _ in turns for token in prompt}
    return ids, [token != bos and token not in prompts for token in ids]


def test_right_masks_pass():
    for right in (by_encode_example, by_places, by_state):
        sft.loss_mask(right)


def library_loss(logits, ids, mask):
    term = masked_loss(logits, ids, mask)
    return term.total / term.count


def by_selection(logits, ids, mask):
    chosen = mask[:, 1:]
    return -logits[chosen].log_softmax(-1).gather(1, ids[:, 1:][chosen][:, None]).mean()


def by_ignored_labels(logits, ids, mask):
    labels = ids.masked_fill(~mask, -100)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_right_losses_pass():
    for right in (library_loss, by_selection, by_ignored_labels):
        sft.masked_loss(right)


def row_by_concatenation(examples, length):
    ids = [t for own, _ in examples for t in own]
    mask = [m for _, own in examples for m in own]
    document = [7 * n + 3 for n, (own, _) in enumerate(examples) for _ in own]
    rest = length - len(ids)
    return (
        torch.tensor(ids + [0] * rest),
        torch.tensor(mask + [False] * rest),
        torch.tensor(document + [-1] * rest),
    )


def in_given_order(examples, length):
    """The library shuffles; undo it, to see that the rest is as the check wants it."""
    packed = PackedDialogs(examples, seq_len=length - 1)
    found = [packed.ids[0][packed.document[0] == n].tolist() for n in range(len(examples))]
    order = [found.index(list(ids)) for ids, _ in examples]
    parts = [packed.document[0] == n for n in (*order, -1)]
    return tuple(
        torch.cat([torch.from_numpy(array[0][part]) for part in parts])
        for array in (packed.ids, packed.loss_mask, packed.document)
    )


def test_right_rows_pass():
    for right in (row_by_concatenation, in_given_order):
        sft.packed_row(right)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        sft.masked_loss(lambda *given: 3 * library_loss(*given))
    with pytest.raises(CheckFailed, match="the ids must be"):
        sft.loss_mask(lambda turns, bos, eos: ([bos], [False]))
    with pytest.raises(CheckFailed, match="expected shape"):
        sft.loss_mask(lambda turns, bos, eos: (by_places(turns, bos, eos)[0], [True, False]))
    with pytest.raises(CheckFailed, match=r"three tensors of shape \(28,\)"):
        sft.packed_row(lambda examples, length: row_by_concatenation(examples, length + 1))


def test_the_library_itself_refuses_the_masks_that_it_can_tell():
    turns = [([11, 12], [21, 22]), ([13], [23])]
    refused = set()
    for name, wrong in sft.MASK_MISTAKES.items():
        try:
            check_example(wrong(turns, sft.BOS, sft.EOS))
        except ValueError:
            refused.add(name.split(",")[0].split(":")[0])
    assert refused == {
        "everything is a target", "BOS is a target", "the mask is upside down",
    }  # fmt: skip
    check_example(by_encode_example(turns, sft.BOS, sft.EOS))
