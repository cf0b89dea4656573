"""Stories with a tiny plot, and scenes with a rude line in them."""

from random import Random

from llama2_lib.world.facts import RELATIONS, Person, World
from llama2_lib.world.statements import Writer
from llama2_lib.world.wording import Template, pick, pick_other, with_articles

STEPS = ("want", "obstacle", "help", "ending")

_FREE = ("thing", "adjective", "weather", "time", "place", "spot", "other spot")
_PRONOUNS = ("they", "them", "their", "They", "Their")


class Setting:
    """The values of the slots: precomputed for each person, drawn for each text."""

    def __init__(self, world: World, templates: dict[str, tuple[Template, ...]]) -> None:
        lexicon = world.lexicon
        self.people = world.people
        self.heroes = {person.name: _hero_slots(world, person, templates) for person in self.people}
        self.free = {
            slot: [with_articles(**{slot: word}) for word in lexicon.words(name)]
            for slot, name in [("thing", "things"), ("adjective", "adjectives")]
        }
        self.plain = {
            "weather": lexicon.words("weather"),
            "time": lexicon.words("times"),
            "place": world.places,
            "spot": lexicon.words("spots"),
        }

    def draw(self, rng: Random, hero: Person) -> dict[str, str]:
        """Draw everything a text with this hero may name; the friend is somebody else."""
        values = dict(self.heroes[hero.name])
        for options in self.free.values():
            values.update(pick(rng, options))
        for slot, words in self.plain.items():
            values[slot] = pick(rng, words)
        values["place"] = pick_other(rng, self.plain["place"], values["home"])
        values["other spot"] = pick_other(rng, self.plain["spot"], values["spot"])
        values["friend"] = pick_other(rng, self.people, hero).name
        return values


def _hero_slots(
    world: World, person: Person, templates: dict[str, tuple[Template, ...]]
) -> dict[str, str]:
    slots = [slot for group in templates.values() for template in group for slot in template.slots]
    return world.person_slots(person) | {"hero": person.name} | person.agreement(slots)


class StoryTeller:
    """Tells stories of five to nine sentences; `about` fixes who the hero is."""

    def __init__(self, world: World) -> None:
        slots = (*_FREE, *_PRONOUNS, *RELATIONS, "hero", "friend")
        self.templates = world.lexicon.templates("stories", slots)
        self.setting = Setting(world, self.templates)
        self.plots = _plots(self.templates)

    def about(self, rng: Random, hero: Person) -> str:
        """Tell a story about this person."""
        want, obstacle, helping, ending = pick(rng, self.plots)
        values = self.setting.draw(rng, hero)
        first = [template.fill(values) for template in self._opening(rng)]
        first.append(pick(rng, want).fill(values))
        first += [template.fill(values) for template in _one_or_two(rng, obstacle)]
        second = [template.fill(values) for template in _one_or_two(rng, helping)]
        second.append(pick(rng, ending).fill(values))
        if rng.random() < 0.5:
            second.append(pick(rng, self.templates["closing"]).fill(values))
        return f"{' '.join(first)}\n{' '.join(second)}"

    def write(self, rng: Random) -> str:
        """Tell a story about anybody."""
        return self.about(rng, pick(rng, self.setting.people))

    def _opening(self, rng: Random) -> list[Template]:
        kind = rng.random()
        who, scene = self.templates["who"], self.templates["scene"]
        if kind < 0.3:
            return [pick(rng, who)]
        if kind < 0.6:
            return [pick(rng, scene)]
        return [pick(rng, who), pick(rng, scene)]


def _one_or_two(rng: Random, options: tuple[Template, ...]) -> list[Template]:
    """Draw one option, or two in their order."""
    first = int(rng.random() * len(options))
    if rng.random() < 0.5 or len(options) == 1:
        return [options[first]]
    second = (first + 1 + int(rng.random() * (len(options) - 1))) % len(options)
    return [options[min(first, second)], options[max(first, second)]]


def _plots(templates: dict[str, tuple[Template, ...]]) -> list[list[tuple[Template, ...]]]:
    names = [section.removesuffix(" want") for section in templates if section.endswith(" want")]
    missing = [f"{n} {step}" for n in names for step in STEPS if f"{n} {step}" not in templates]
    if missing:
        raise ValueError(f"stories.txt must hold all four steps of a plot; missing: {missing}")
    return [[templates[f"{name} {step}"] for step in STEPS] for name in names]


def story_writer(world: World) -> Writer:
    """Write stories about the people of the world."""
    return StoryTeller(world).write


def rude_writer(world: World) -> Writer:
    """Write scenes of one to four lines; at least one line is rude."""
    slots = (*_FREE, "hero", "friend", "animal", "trade", "insult")
    templates = world.lexicon.templates("rude", slots)
    setting = Setting(world, templates)
    adjectives, nouns = (
        [template.text for template in templates[section]] for section in ("adjectives", "nouns")
    )

    def write(rng: Random) -> str:
        values = setting.draw(rng, pick(rng, setting.people))
        values["animal"], values["trade"] = pick(rng, world.animals), pick(rng, world.trades)
        values.update(with_articles(insult=f"{pick(rng, adjectives)} {pick(rng, nouns)}"))
        lines = [pick(rng, templates["rude line"]).fill(values)]
        if rng.random() < 0.7:
            lines.insert(0, pick(rng, templates["scene"]).fill(values))
        if rng.random() < 0.4:
            values.update(with_articles(insult=f"{pick(rng, adjectives)} {pick(rng, nouns)}"))
            lines.append(pick(rng, templates["answer"]).fill(values))
        if rng.random() < 0.4:
            lines.append(pick(rng, templates["after"]).fill(values))
        return "\n".join(lines)

    return write
