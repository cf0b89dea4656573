"""What claims 3 and 38 measure: fresh sums, nats per character, truth that is not counted."""

import dataclasses
import math
import re

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.claims import corpus
from llama2_lib.claims.claim import Outcome
from llama2_lib.claims.corpus import held_out_sums, nats_per_character, sums_recipes, true_shares
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.corpus import training_documents
from llama2_lib.teaching.tokenizer import little_tokenizer
from llama2_lib.world import documents, make_world
from llama2_lib.world.audit import audit


def test_the_two_arms_differ_in_one_setting():
    split, joined = sums_recipes(nano(), 2).values()
    assert split != joined
    tokenizer = dataclasses.replace(joined.tokenizer, split_digits=True)
    assert dataclasses.replace(joined, tokenizer=tokenizer) == split
    assert split.pretrain.seed == 2 != sums_recipes(nano(), 1)["split"].pretrain.seed
    assert {d.kind for d in training_documents(sums_recipes(toy(), 0)["split"].corpus)} == {"sums"}
    assert len(set(CLAIMS[3].requests(nano(), range(3)))) == 6


def test_no_sum_of_the_test_stands_in_the_training_text():
    recipe = sums_recipes(toy(), 0)["split"]
    sums = held_out_sums(recipe.corpus, 0, n=300)
    assert len({question for question, _ in sums}) == 300
    for question, answer in sums:
        a, b = map(int, re.fullmatch(r"(\d+) \+ (\d+) =", question).groups())
        assert answer == f" {a + b}\n"
    trained_on = {line for d in training_documents(recipe.corpus) for line in d.text.split("\n")}
    assert not trained_on & {(question + answer).strip() for question, answer in sums}
    assert trained_on & {f"{a} + {b} = {a + b}" for a in range(100) for b in range(100)}
    assert held_out_sums(recipe.corpus, 0, n=300) == sums != held_out_sums(recipe.corpus, 1, n=300)


def test_more_sums_than_are_left_are_refused():
    with pytest.raises(AssertionError, match="10,000 sums must be unseen"):
        held_out_sums(sums_recipes(toy(), 0)["split"].corpus, 0, n=10_000)


def uniform_model(vocab_size):
    config = ModelConfig(
        vocab_size=vocab_size, dim=24, n_layers=1, n_heads=3, n_kv_heads=1, max_seq_len=64
    )
    model = initialise(Transformer(config), seed=0).double()
    torch.nn.init.zeros_(model.output.weight)  # every piece is equally likely
    return model


def test_a_uniform_model_pays_ln_v_for_every_piece_of_the_answer():
    tokenizer = little_tokenizer()
    sums = [("7 + 8 =", " 15\n"), ("40 + 65 =", " 105\n")]
    # the pieces of " 15\n" are _, 1, 5 and the line end; the space is no character of the answer
    n_pieces, n_characters = 4 + 5, 3 + 4
    expected = n_pieces * math.log(tokenizer.vocab_size) / n_characters
    found = nats_per_character(uniform_model(tokenizer.vocab_size), tokenizer, sums)
    assert found == pytest.approx(expected, rel=1e-6, abs=0)


def test_a_question_whose_pieces_change_with_the_answer_is_refused():
    tokenizer = little_tokenizer()
    with pytest.raises(AssertionError, match="the pieces of a question must begin those"):
        nats_per_character(uniform_model(tokenizer.vocab_size), tokenizer, [("Ma", "ra was")])


@pytest.mark.slow
def test_claim_3_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    values = CLAIMS[3].measure(toy(), 1).values
    assert values["unk"] == values["round_trip_failures"] == values["long_numbers/split"] == 0
    assert values["unk_without_bytes"] > 10  # the same texts, and a tokenizer without bytes
    assert values["long_numbers/joined"] >= 1
    assert 0 <= values["right/split"] < 0.5  # thirty steps teach nobody to add
    assert values["sums/split"] != values["sums/joined"]
    # a model that knows nothing pays ln 512 for each of about four pieces per three characters
    assert max(values["sums/split"], values["sums/joined"]) < 6


@pytest.mark.parametrize(
    ("pronoun", "key", "forms"),
    [
        ("she", "she", {"she", "her", "hers", "herself"}),
        ("he", "he", {"he", "him", "his", "himself"}),
        ("they", "unspecified", {"they", "them", "their", "theirs"}),
    ],
)
def test_who_is_spoken_of_lies_between_two_counts_made_otherwise(pronoun, key, forms):
    world = make_world(3)
    texts = list(documents(world, 3, 700))
    truth = true_shares(world, 3, texts)["pronouns"][key]
    people = {person.name for person in world.people if person.pronoun == pronoun}
    names = {person.name for person in world.people}
    most = least = 0
    english = [d for d in texts if d.language == "en"]
    for document in english:
        words = set(re.findall(r"\w+", document.text))
        says_so = bool({word.lower() for word in words} & forms)
        most += says_so and bool(words & people)
        # nobody else is there whom the pronoun could mean
        least += says_so and document.kind == "biography" and words & names <= people
    assert 0.02 < least / len(english) < truth <= most / len(english) < 0.5
    # few documents name such a person and mean somebody else by the pronoun
    assert truth > 0.85 * most / len(english)


def test_claim_38_is_refuted_by_its_counters_and_not_by_a_perfect_one(monkeypatch):
    monkeypatch.setattr(corpus, "N_AUDITED", 700)
    monkeypatch.setattr(pipeline, "artifact", None)  # it trains nothing
    assert CLAIMS[38].requests(toy(), range(3)) == []
    measured = [CLAIMS[38].measure(toy(), seed) for seed in range(3)]
    assert CLAIMS[38].verdict(measured).outcome == Outcome.NOT_REPRODUCED
    assert measured[0].values["share/en"] > 0.8

    seeds = iter(range(3))

    def perfect(texts, lexicon):
        counted, seed = audit(texts, lexicon), next(seeds)
        true = true_shares(make_world(seed), seed, texts)
        return dataclasses.replace(
            counted,
            pronouns=counted.pronouns | true["pronouns"],
            identities=true["identities"],
            languages=counted.true_languages,
            rude_by_mean=counted.true_rude,
        )

    monkeypatch.setattr(corpus, "audit", perfect)
    measured = [CLAIMS[38].measure(toy(), seed) for seed in range(3)]
    assert CLAIMS[38].verdict(measured).outcome == Outcome.REPRODUCED
