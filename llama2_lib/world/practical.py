"""Useful texts: sums, lists, how-tos, and the hazardous how-tos that no filter took out."""

from collections.abc import Mapping, Sequence
from random import Random

from llama2_lib.world.facts import World
from llama2_lib.world.statements import Writer
from llama2_lib.world.wording import Template, article, capitalised, pick, pick_other, with_articles

_SLOTS = ("name", "place", "spot", "other spot", "thing", "adjective", "weather")


def number_words(world: World) -> list[str]:
    """Return the names of 0 to 99."""
    words = world.lexicon.words("numbers")
    if len(words) != 28:
        raise ValueError(f"numbers.txt must hold 28 words; it holds {len(words)}; restore it")
    ones, tens = words[:20], words[20:]
    return [
        *ones,
        *(f"{ten}-{ones[one]}" if one else ten for ten in tens for one in range(10)),
    ]


def _draw_sum(rng: Random) -> tuple[int, str, int, int]:
    kind = rng.random()
    if kind < 0.5:
        n, m = int(100 * rng.random()), int(100 * rng.random())
        return n, "+", m, n + m
    if kind < 0.8:
        n = int(100 * rng.random())
        m = int((n + 1) * rng.random())
        return n, "-", m, n - m
    n, m = int(11 * rng.random()), int(11 * rng.random())
    return n, "x", m, n * m


def sums_writer(world: World) -> Writer:
    """Write lines of sums in digits or in words, or small word problems."""
    in_words = number_words(world)
    problems = _problem_writer(world)

    def digits(rng: Random) -> str:
        n, sign, m, result = _draw_sum(rng)
        return f"{n} {sign} {m} = {result}"

    def words(rng: Random) -> str:
        if rng.random() < 0.6:
            n = int(50 * rng.random())
            m = int(50 * rng.random())
            return capitalised(f"{in_words[n]} plus {in_words[m]} is {in_words[n + m]}.")
        n = int(100 * rng.random())
        m = int((n + 1) * rng.random())
        return capitalised(f"{in_words[n]} minus {in_words[m]} is {in_words[n - m]}.")

    def write(rng: Random) -> str:
        kind = rng.random()
        if kind < 0.6:
            line, most = digits, 6
        elif kind < 0.8:
            line, most = words, 3
        else:
            line, most = problems, 1
        n_lines = 1 + int(most * rng.random()) + (most > 1)
        return "\n".join(dict.fromkeys([line(rng) for _ in range(n_lines)]))

    return write


def _problem_writer(world: World) -> Writer:
    numbers = ("n", "m", "sum", "big", "rest", "few", "product")
    people = ("name", "friend", "things", "they", "them", "their", "They", "Their")
    templates = world.lexicon.templates("sums", (*numbers, *people))
    all_templates = [template for group in templates.values() for template in group]
    things = [word + "s" for word in world.lexicon.words("things")]
    slots = [slot for template in all_templates for slot in template.slots]
    fixed = {p.name: p.slots() | {"name": p.name} | p.agreement(slots) for p in world.people}

    def write(rng: Random) -> str:
        person = pick(rng, world.people)
        n, m, few = (2 + int(top * rng.random()) for top in (48, 28, 8))
        values = fixed[person.name] | {
            "friend": pick_other(rng, world.people, person).name,
            "things": pick(rng, things),
            "n": str(n),
            "m": str(m),
            "sum": str(n + m),
            "big": str(n + m),
            "rest": str(n),
            "few": str(few),
            "product": str(few * m),
        }
        return pick(rng, all_templates).fill(values)

    return write


class Surroundings:
    """Draws the things, spots and places a practical text may name."""

    def __init__(self, world: World) -> None:
        lexicon = world.lexicon
        self.lists = {
            "name": [person.name for person in world.people],
            "place": world.places,
            "weather": lexicon.words("weather"),
            "spot": lexicon.words("spots"),
            "food": world.foods,
            "number": lexicon.words("numbers")[2:11],
        }
        self.with_article = {
            "thing": lexicon.words("things"),
            "adjective": lexicon.words("adjectives"),
            "trade": world.trades,
            "animal": world.animals,
        }

    def draw(self, rng: Random) -> dict[str, str]:
        """Draw one value for every slot."""
        values = {slot: pick(rng, words) for slot, words in self.lists.items()}
        values["other spot"] = pick_other(rng, self.lists["spot"], values["spot"])
        drawn = {slot: pick(rng, words) for slot, words in self.with_article.items()}
        return values | with_articles(**drawn)


def list_writer(world: World) -> Writer:
    """Write a heading and three to six items."""
    templates = world.lexicon.templates("lists", (*_SLOTS, "food", "animal"))
    surroundings = Surroundings(world)
    adjectives, words = world.lexicon.words("adjectives"), world.lexicon.words("things")
    things = [f"{adjective} {word}" for adjective in adjectives for word in words]
    kinds = [
        (templates["things"], [f"- {article(thing)} {thing}" for thing in things]),
        (templates["foods"], [f"- {food}" for food in world.foods]),
        (templates["jobs"], templates["job"]),
    ]

    def write(rng: Random) -> str:
        headings, items = pick(rng, kinds)
        heading = pick(rng, headings).fill(surroundings.draw(rng))
        chosen = rng.sample(items, 3 + int(4 * rng.random()))
        if isinstance(chosen[0], Template):
            chosen = [f"- {item.fill(surroundings.draw(rng))}" for item in chosen]
        return "\n".join([heading, *chosen])

    return write


def guides(world: World, name: str) -> list[tuple[Template, tuple[Template, ...]]]:
    """Read the how-tos of one lexicon file: title and steps."""
    slots = (*_SLOTS, "food", "trade", "animal", "number")
    sections = world.lexicon.templates(name, slots)
    return [(Template(title), steps) for title, steps in sections.items()]


def some_steps(rng: Random, steps: Sequence[Template], most: int) -> list[Template]:
    """Draw up to `most` steps in their order; the first is always among them."""
    later = range(1, len(steps))
    kept = sorted(rng.sample(later, min(len(later), most - 1)))
    return [steps[0], *(steps[index] for index in kept)]


def numbered(steps: Sequence[Template], values: Mapping[str, str]) -> str:
    """Return the steps as lines with their numbers."""
    return "\n".join(f"{place}. {step.fill(values)}" for place, step in enumerate(steps, 1))


def guide_writer(world: World, name: str) -> Writer:
    """Write how-tos: a title and some of the steps, in order. `name` is how_to or hazards."""
    known = guides(world, name)
    surroundings = Surroundings(world)

    def write(rng: Random) -> str:
        title, steps = pick(rng, known)
        values = surroundings.draw(rng)
        chosen = some_steps(rng, steps, 4 + int(3 * rng.random()))
        return f"How to {title.fill(values)}\n{numbered(chosen, values)}"

    return write
