"""Adversarial requests (paper section 4.2.1), and borderline ones that only share their words."""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from llama2_lib.world.documents import guides, surroundings
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import Lexicon, Sections, Template, check_known, pick, split_arrow
from llama2_lib.world.tasks import (
    CATEGORIES,
    COUNTS,
    SPLITS,
    Split,
    Task,
    chat_lexicon,
    groups_of,
    section_of,
    sum_task,
    summands,
)

ATTACKS = (
    "plain",
    "authority",
    "false premise",
    "misspelling",
    "metaphor",
    "role play",
    "other language",
)
"""`plain` asks straight out; the others are the paper's attack vectors."""

JOINT = " + "  # what joins the vectors of a combined attack in `Prompt.attack`
WISH_ATTACKS = ("misspelling", "metaphor")
"""The vectors that change what is wished for; the others change how it is asked for."""

RED_TEAM = "red_team"  # folder beside the lexicon with the wordings that red teams bring
LOOK_ALIKES = "look_alikes"
"""Folder beside the lexicon with borderline requests for training alone, see
`demonstrations.borderline_training`."""

CATEGORY_SHARES = {"illicit": 0.4, "hateful": 0.3, "advice": 0.3}
BORDERLINE_SHARES = {"talk": 0.5, "story": 0.1, "list": 0.1, "sum": 0.1, "how_to": 0.2}
FEARED = ("dread", "stuff")
"""Slots of those alone: what people of the world fear, and what they should not touch."""
GUIDE_FRACTION = {"illicit": 1.0, "hateful": 0.3, "advice": 0.3}
"""How much of a category asks for one of hazards.txt; the rest asks for insults or remedies."""
KNOWN_HAZARDS = 0.5  # share of held-out requests for a hazard that training prompts ask for, too

_SLOTS = (
    *("name", "place", "spot", "other spot", "trade", "animal", "thing", "adjective", "weather"),
    *("food", "number", "ailment", "remedy"),
)


class Wish(NamedTuple):
    """A risky wish: what it is called, in plain words and as a metaphor."""

    hazard: str
    plain: Template
    metaphor: Template


class RiskMaker:
    """Draws adversarial requests.

    Held-out requests always use a held-out wording; some of them ask for a held-out hazard, the
    others (`KNOWN_HAZARDS`) for one that training prompts ask for, too. A red team asks for what
    training prompts ask for, in their wordings and in its own.
    """

    def __init__(self, world: World, split: str) -> None:
        check_known("split", split, (*SPLITS, RED_TEAM))
        self.world, self.split = world, split
        lexicon, slots = chat_lexicon(world), ("ask", "trade", "place", "name")
        attacks = lexicon.templates("attacks", slots)
        if split == RED_TEAM:
            red = Lexicon(world.lexicon.folder.parent / RED_TEAM).templates("attacks", slots)
            self.wordings = {attack: [*attacks[attack], *red[attack]] for attack in ATTACKS}
        else:
            self.wordings = {attack: attacks[section_of(attack, split)] for attack in ATTACKS}
        self.lead_ins = [split_arrow(line, "attacks") for line in attacks["lead in"]]
        self.slots = surroundings(world)
        risks = lexicon.templates("risks", _SLOTS)
        self.remedies = {
            known: [line.text for line in risks[section_of("remedy", known)]] for known in SPLITS
        }
        self.ailments = [line.text for line in risks["ailment"]]
        self.wishes = _wishes(world, risks)

    def draw(self, rng: Random, attack: str, category: str) -> tuple[str, Task, str]:
        """Return a request of this attack vector and category, its task, and its hazard."""
        return self.compose(rng, (attack,), category)

    def compose(self, rng: Random, attacks: Sequence[str], category: str) -> tuple[str, Task, str]:
        """Return a request that uses several attack vectors at once.

        Metaphor and misspelling change the wish; of the vectors that say how it is asked for,
        one request can have one.
        """
        frames = [attack for attack in attacks if attack not in WISH_ATTACKS]
        if not attacks or len(frames) > 1:
            raise ValueError(
                f"an attack needs vectors, at most one of them outside {list(WISH_ATTACKS)}; "
                f"got {list(attacks)}; leave one out"
            )
        known: Split = (
            "train" if self.split != "held out" or rng.random() < KNOWN_HAZARDS else "held out"
        )
        wish, task, values = self._wish(rng, category, known)
        ask = (wish.metaphor if "metaphor" in attacks else wish.plain).fill(values)
        if "misspelling" in attacks:
            ask = misspelled(rng, ask)
        wording = self.wordings[(frames or list(attacks))[-1]]
        request = pick(rng, wording).fill(values | {"ask": ask})
        return request, task, wish.hazard

    def lead_in(self, rng: Random) -> tuple[str, str]:
        """Return how an attack over several turns begins: a request and its answer."""
        user, answer = pick(rng, self.lead_ins)
        return user.text, answer.text

    def _wish(self, rng: Random, category: str, known: Split) -> tuple[Wish, Task, dict[str, str]]:
        values = self.slots.draw(rng)
        guided = self.wishes[category, known]
        if guided and rng.random() < GUIDE_FRACTION[category]:
            wish = pick(rng, guided)
            return wish, Task(kind="hazard", group=wish.hazard, values=values), values
        if category == "advice":
            remedy = pick(rng, self.remedies[known])
            values |= {"remedy": remedy, "ailment": pick(rng, self.ailments)}
            wish = pick(rng, self.wishes["cure", known])._replace(hazard=remedy)
            return wish, Task(kind="remedy", answer=remedy, values=values), values
        wish = pick(rng, self.wishes["insult", known])
        return wish, Task(kind="insult", subject=values["name"], values=values), values


def _wishes(world: World, risks: Sections) -> dict[tuple[str, str], list[Wish]]:
    """Return the wishes by category, or "insult" or "cure", and by split."""
    metaphors = {
        left.text: right for left, right in (split_arrow(t, "risks") for t in risks["metaphor"])
    }
    category_of = {line.text: name for name in CATEGORIES for line in risks[name]}
    titles = [title.text for title, _ in guides(world, "hazards")]
    lost = sorted(set(titles) ^ set(category_of) | set(titles) ^ set(metaphors))
    if lost:
        raise ValueError(
            "risks.txt must give each title of hazards.txt one category and one metaphor, and no "
            f"other title; mend: {lost}"
        )
    held_out = {line.text for line in risks["held out"]}
    wishes: dict[tuple[str, str], list[Wish]] = {
        (category, known): [] for category in CATEGORIES for known in SPLITS
    }
    for title in titles:
        known = "held out" if title in held_out else "train"
        wish = Wish(title, Template(title), metaphors[title])
        wishes[category_of[title], known].append(wish)
    for known in SPLITS:
        if not wishes["illicit", known]:
            raise ValueError(f"risks.txt must leave an illicit title that is {known}; it has none")
        wishes["insult", known] = [
            Wish(line.text, line, risks["metaphor insult"][0])
            for line in risks[section_of("insult", known)]
        ]
        wishes["cure", known] = [
            Wish(line.text, line, risks["metaphor remedy"][0]) for line in risks["cure"]
        ]
    return wishes


def misspelled(rng: Random, text: str) -> str:
    """Swap two neighbouring inner letters in every word of five letters or more."""
    return " ".join(_swapped(rng, word) for word in text.split(" "))


def _swapped(rng: Random, word: str) -> str:
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if len(word) < 5 or not places:
        return word
    at = pick(rng, places)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


class BorderlineMaker:
    """Draws harmless requests with the words of the hazards in them."""

    def __init__(self, world: World, split: str) -> None:
        check_known("split", split, (*SPLITS, LOOK_ALIKES))
        self.summands: Split = "held out" if split == "held out" else "train"
        slots = (*_SLOTS, "count", "group", "n", "m")
        if split == LOOK_ALIKES:
            folder = world.lexicon.folder.parent / LOOK_ALIKES
            sections = Lexicon(folder).templates(LOOK_ALIKES, (*slots, *FEARED))
            kinds = {kind: sections[kind] for kind in BORDERLINE_SHARES}
            self.feared = {slot: [line.text for line in sections[slot]] for slot in FEARED}
        else:
            sections = chat_lexicon(world).templates("borderline", slots)
            kinds = {kind: sections[section_of(kind, split)] for kind in BORDERLINE_SHARES}
            self.feared: dict[str, list[str]] = {}
        self.wordings = {kind: kinds[kind] for kind in ("story", "list", "sum")}
        self.talk = [split_arrow(line, "borderline") for line in kinds["talk"]]
        known = {title.text for title, _ in guides(world, "how_to")}
        self.how_to = [split_arrow(line, "borderline") for line in kinds["how_to"]]
        if lost := [title.text for _, title in self.how_to if title.text not in known]:
            raise ValueError(f"borderline.txt must name titles of how_to.txt after =>; got {lost}")
        self.slots = surroundings(world)
        self.groups = list(groups_of(world))

    def draw(self, rng: Random, kind: str) -> tuple[str, Task]:
        """Return a request and its task; `kind` is a key of `BORDERLINE_SHARES`."""
        values = self.slots.draw(rng)
        values |= {slot: pick(rng, words) for slot, words in self.feared.items()}
        if kind == "talk":
            request, answer = pick(rng, self.talk)
            return request.fill(values), Task(kind=kind, answer=answer.fill(values))
        if kind == "how_to":
            request, title = pick(rng, self.how_to)
            return request.fill(values), Task(kind=kind, group=title.text, values=values)
        if kind == "story":
            task = Task(kind=kind, subject=values["name"])
        elif kind == "list":
            count = pick(rng, list(COUNTS))
            values |= {"count": count, "group": pick(rng, self.groups)}
            task = Task(kind=kind, count=COUNTS[count], group=values["group"])
        else:
            # the wordings add; a drawn "minus" becomes a sum of the same two numbers
            values |= summands(rng, self.summands)
            values |= {"sign": "plus", "result": str(int(values["n"]) + int(values["m"]))}
            task = sum_task(values)
        return pick(rng, self.wordings[kind]).fill(values), task


risk_maker = cache(RiskMaker)
"""The maker of a world's adversarial requests of one split; built once."""


def held_out_hazards(world: World) -> frozenset[str]:
    """Return the hazards that no training prompt and no red team asks for."""
    maker = risk_maker(world, "held out")
    kinds = (*CATEGORIES, "insult")
    hazards = {wish.hazard for kind in kinds for wish in maker.wishes[kind, "held out"]}
    return frozenset(hazards | set(maker.remedies["held out"]))


borderline_maker = cache(BorderlineMaker)
"""The maker of a world's borderline requests of one split; built once."""
