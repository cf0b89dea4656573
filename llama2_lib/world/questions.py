"""Questions on the facts, which of them are ever asked, and whether an answer is right."""

import re
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from llama2_lib.rng import random_source
from llama2_lib.world.facts import RELATIONS, Fact, World
from llama2_lib.world.statements import Writer
from llama2_lib.world.wording import pick, with_articles

Exposure = Literal["seen form", "unseen form", "never asked"]

N_FORMS = 4
NEVER_ASKED_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class RecallItem:
    """One question for a model: does it know the fact, and in which way was it asked before?

    `choices` are all values the relation can take, the answer among them.
    """

    prompt: str
    answer: str
    fact: Fact
    form: int
    exposure: Exposure
    choices: tuple[str, ...] = field(repr=False)


def held_out_forms(world: World) -> dict[Fact, int | None]:
    """Return for each fact the one form in which it is never asked; None: it is never asked at all.

    One fact in five of each relation is never asked. The held-out forms are spread evenly.
    """
    held_out: dict[Fact, int | None] = {}
    for relation in RELATIONS:
        facts = [fact for fact in world.facts if fact.relation == relation]
        random_source(world.seed, "exposure", relation).shuffle(facts)
        n_never = round(NEVER_ASKED_FRACTION * len(facts))
        for index, fact in enumerate(facts):
            held_out[fact] = None if index < n_never else index % N_FORMS
    return {fact: held_out[fact] for fact in world.facts}


def exposure(world: World, fact: Fact, form: int) -> Exposure:
    """Say how documents and dialogs ask for this fact in this form."""
    held_out = held_out_forms(world)[fact]
    if held_out is None:
        return "never asked"
    return "unseen form" if form == held_out else "seen form"


def question_forms(world: World) -> dict[Fact, tuple[str, ...]]:
    """Return the four questions for every fact."""
    templates = world.lexicon.templates("questions", ("name", "value"))
    for relation in RELATIONS:
        n_forms = len(templates[relation])
        if n_forms != N_FORMS:
            raise ValueError(
                f"questions.txt must hold {N_FORMS} forms under [{relation}]; it holds {n_forms}"
            )
    return {
        fact: tuple(form.fill({"name": fact.subject}) for form in templates[fact.relation])
        for fact in world.facts
    }


def answers(world: World) -> dict[Fact, str]:
    """Return the true answer to every fact's questions, one sentence."""
    templates = world.lexicon.templates("questions", ("name", "value"))
    return {
        fact: templates[f"{fact.relation} answer"][0].fill(
            with_articles(name=fact.subject, value=fact.value)
        )
        for fact in world.facts
    }


def asked_pairs(world: World) -> list[list[tuple[str, str]]]:
    """Return for each fact that is ever asked its seen questions, each with the answer."""
    forms, answer, held_out = question_forms(world), answers(world), held_out_forms(world)
    return [
        [(text, answer[fact]) for form, text in enumerate(forms[fact]) if form != held_out[fact]]
        for fact in world.facts
        if held_out[fact] is not None
    ]


def question_writer(world: World) -> Writer:
    """Write three to six questions with their answers."""
    blocks = [
        tuple(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
        for pairs in asked_pairs(world)
    ]

    def write(rng: Random) -> str:
        drawn = dict.fromkeys([pick(rng, blocks) for _ in range(3 + int(4 * rng.random()))])
        return "\n".join([pick(rng, options) for options in drawn])

    return write


def recall_items(world: World) -> list[RecallItem]:
    """Return one item per fact in a seen and one in the unseen form; one if it is never asked."""
    forms, held_out = question_forms(world), held_out_forms(world)
    choices = {relation: world.choices(relation) for relation in RELATIONS}
    items = []
    for index, fact in enumerate(world.facts):
        unseen = held_out[fact]
        if unseen is None:
            asked: list[tuple[int, Exposure]] = [(index % N_FORMS, "never asked")]
        else:
            seen = (unseen + 1 + index % (N_FORMS - 1)) % N_FORMS
            asked = [(seen, "seen form"), (unseen, "unseen form")]
        for form, kind in asked:
            prompt = f"Question: {forms[fact][form]}\nAnswer:"
            values = choices[fact.relation]
            items.append(RecallItem(prompt, fact.value, fact, form, kind, values))
    return items


def is_correct(item: RecallItem, completion: str) -> bool:
    """Say whether the first line names the true value and no other value of its relation."""
    first_line = completion.strip().split("\n", 1)[0].lower()
    named = set(re.findall(r"\w+", first_line))
    possible = {value.lower() for value in item.choices}
    return named & possible == {item.answer.lower()}
