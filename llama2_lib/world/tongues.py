"""Two small invented languages. Their grammar is here, their words are in the lexicon."""

from random import Random

from llama2_lib.world.facts import World
from llama2_lib.world.statements import Writer
from llama2_lib.world.wording import capitalised, pick

LANGUAGES = {"language_a": "lumi", "language_b": "torgan"}


def vocabulary(world: World, name: str) -> dict[str, tuple[str, ...]]:
    """Return the words of a language by part of speech."""
    parts = world.lexicon.sections(name)
    pairs = {part: world.lexicon.pairs(name, part) for part in parts}
    return {part: tuple(word for word, _ in words) for part, words in pairs.items()}


def _sentences_writer(sentence: Writer) -> Writer:
    def write(rng: Random) -> str:
        n_sentences = 3 + int(4 * rng.random())
        return " ".join(dict.fromkeys([sentence(rng) for _ in range(n_sentences)]))

    return write


def lumi_writer(world: World) -> Writer:
    """Write Lumi: subject verb object, adjectives after their noun, article before it."""
    words = vocabulary(world, "language_a")
    articles = [article for article, _ in world.lexicon.pairs("language_a", "article")]
    names = [person.name for person in world.people]

    def noun_phrase(rng: Random) -> str:
        phrase = f"{pick(rng, articles)} {pick(rng, words['noun'])}"
        return f"{phrase} {pick(rng, words['adjective'])}" if rng.random() < 0.4 else phrase

    def sentence(rng: Random) -> str:
        subject = pick(rng, names) if rng.random() < 0.2 else noun_phrase(rng)
        text = f"{subject} {pick(rng, words['verb'])} {noun_phrase(rng)}"
        if rng.random() < 0.3:
            text += f" {pick(rng, words['preposition'])} {noun_phrase(rng)}"
        if rng.random() < 0.2:
            text = f"{pick(rng, words['adverb'])} {text}"
        elif rng.random() < 0.2:
            text += f" {pick(rng, words['conjunction'])} {pick(rng, words['verb'])}"
        return capitalised(text) + "."

    return _sentences_writer(sentence)


def torgan_writer(world: World) -> Writer:
    """Write Torgan: subject object verb, `-ok` on the object, `ga` ends a question."""
    words = vocabulary(world, "language_b")
    names = [person.name for person in world.people]

    def noun_phrase(rng: Random) -> str:
        noun = pick(rng, words["noun"])
        return f"{pick(rng, words['adjective'])} {noun}" if rng.random() < 0.4 else noun

    def sentence(rng: Random) -> str:
        text = pick(rng, names) if rng.random() < 0.2 else noun_phrase(rng)
        if rng.random() < 0.3:
            text += f" {noun_phrase(rng)} {pick(rng, words['postposition'])}"
        text += f" {noun_phrase(rng)}ok {pick(rng, words['verb'])}"
        if rng.random() < 0.2:
            return capitalised(f"{text} {pick(rng, words['question'])}?")
        if rng.random() < 0.2:
            text = f"{pick(rng, words['adverb'])} {text}"
        return capitalised(text) + "."

    return _sentences_writer(sentence)
