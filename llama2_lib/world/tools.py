"""Tools that a model may call, their answers, and dialogs that use them (section 5.1, tool use).

The system message says which tools there are and what they do. A call is a line of the answer,
`name: arguments =`; whoever runs the model writes the result behind it, and the model goes on:

    scale: goose = 7
    The scale says 7.

What a tool says of the village is drawn from the seed of the world and stands in no document.
"""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import NamedTuple

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import between, check_known, pick
from llama2_lib.world.tasks import LARGEST_SUMMAND, summands

UNKNOWN = "unknown"
"""What a tool answers to what it does not understand."""
NO_TOOL = "I have no tool for that."
ANSWER = "The {tool} says {result}."
WITHOUT = 0.15
"""Share of dialogs whose tools cannot answer: a call would be wrong."""
MOST_OFFERED = 3
HELD_OUT_WORDS = 0.25
"""Share of the towns, foods and so on that no training dialog asks a tool about."""
SPLITS = ("train", "held-out words", "held-out tool")


class Tool(NamedTuple):
    """One tool: what the system message says of it, how it is asked for, and what it does."""

    name: str
    does: str
    requests: tuple[str, ...]
    """Of users, with {word} for what is asked about."""
    words: Callable[[World], tuple[str, ...]]
    """What it can be asked about; none: numbers."""
    run: Callable[[World, str], str]
    """Takes the arguments of a call."""


class ToolTask(NamedTuple):
    """One request, the tools at hand, and the right call; `tool` is None where none fits."""

    dialog: list[Message]
    tool: str | None
    arguments: str
    result: str

    @property
    def call(self) -> str:
        """The line that calls the tool."""
        return f"{self.tool}: {self.arguments} ="

    @property
    def answer(self) -> str:
        """What is said after the result."""
        return ANSWER.format(tool=self.tool, result=self.result)


def calculate(world: World, arguments: str) -> str:
    """Return the result of `n plus m` or `n minus m`."""
    parts = arguments.split()
    if len(parts) != 3 or parts[1] not in ("plus", "minus"):
        return UNKNOWN
    if not (parts[0].isdecimal() and parts[2].isdecimal()):
        return UNKNOWN
    n, m = int(parts[0]), int(parts[2])
    return str(n + m if parts[1] == "plus" else n - m)


def _measured(name: str, least: int, most: int) -> Callable[[World, str], str]:
    """Return a tool that tells a number of each word it knows."""

    def run(world: World, arguments: str) -> str:
        if arguments not in TOOLS[name].words(world):
            return UNKNOWN
        return str(between(random_source(world.seed, name, arguments), least, most))

    return run


def _told(name: str, texts: Callable[[World], tuple[str, ...]]) -> Callable[[World, str], str]:
    def run(world: World, arguments: str) -> str:
        if arguments not in TOOLS[name].words(world):
            return UNKNOWN
        return pick(random_source(world.seed, name, arguments), texts(world))

    return run


def strangers(world: World) -> tuple[str, ...]:
    """Return the people of whom no document tells anything."""
    known = {person.name for person in world.people}
    return tuple(name for name, _ in world.lexicon.pairs("names") if name not in known)


def _places(world: World) -> tuple[str, ...]:
    return world.places


_LIST = (
    Tool(
        "calculator", "adds and subtracts numbers",
        ("What is {word}?", "How much is {word}?"), lambda _: (), calculate,
    ),
    Tool(
        "book", "tells where a person lives",
        ("Where does {word} live?", "In which town is the home of {word}?"),
        strangers, _told("book", _places),
    ),
    Tool(
        "scale", "weighs an animal",
        ("How heavy is the {word}?", "What does the {word} weigh?"),
        lambda world: world.animals, _measured("scale", 2, 90),
    ),
    Tool(
        "shop", "tells the price of a food",
        ("What does {word} cost?", "How much must I pay for {word}?"),
        lambda world: world.foods, _measured("shop", 2, 40),
    ),
    Tool(
        "map", "tells how many miles it is to a town",
        ("How far is it to {word}?", "How many miles is it to {word}?"),
        _places, _measured("map", 3, 99),
    ),
    Tool(
        "clock", "tells at what hour the market of a town opens",
        ("When does the market of {word} open?",), _places, _measured("clock", 5, 11),
    ),
    Tool(
        "window", "tells the weather in a town",
        ("How is the weather in {word}?", "What is the weather like in {word}?"),
        _places, _told("window", lambda world: world.lexicon.words("weather")),
    ),
)  # fmt: skip
TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in _LIST}
HELD_OUT_TOOL = "window"
"""The one that no training dialog offers: it is described in the system message alone."""


def run_tool(world: World, name: str, arguments: str) -> str:
    """Return what a tool says; `unknown` for a tool that does not exist."""
    return TOOLS[name].run(world, arguments) if name in TOOLS else UNKNOWN


def offered(tools: list[str]) -> str:
    """Return the system message that describes some tools."""
    return "Tools: " + "; ".join(f"{name} {TOOLS[name].does}" for name in tools) + "."


def tool_tasks(
    world: World, seed: int, n: int | None = None, split: str = "train", only: str | None = None
) -> Iterator[ToolTask]:
    """Yield n requests with the tools at hand; `n=None` never ends.

    Of "held-out words" no training dialog asks that tool about the word or sum; of "held-out tool"
    no training dialog offers the tool, which is then always the right one. `only` names one tool.
    """
    check_known("split", split, SPLITS)
    rng = random_source(seed, "tools", split, world.seed)
    held_out = split == "held-out tool"
    trained = [name for name in TOOLS if name != HELD_OUT_TOOL]
    while n is None or n > 0:
        name = only or (HELD_OUT_TOOL if held_out else pick(rng, trained))
        others = rng.sample([t for t in trained if t != name], between(rng, 1, MOST_OFFERED - 1))
        fits = held_out or only is not None or rng.random() >= WITHOUT
        tools = [*others, name] if fits else others
        rng.shuffle(tools)
        arguments = _arguments(world, rng, name, split)
        request = pick(rng, TOOLS[name].requests).format(word=arguments)
        dialog: list[Message] = [
            {"role": "system", "content": offered(tools)},
            {"role": "user", "content": request},
        ]
        result = run_tool(world, name, arguments)
        yield ToolTask(dialog, name if fits else None, arguments, result)
        n = None if n is None else n - 1


def _arguments(world: World, rng: Random, name: str, split: str) -> str:
    words = list(TOOLS[name].words(world))
    if not words:
        drawn = summands(rng, "train" if split == "train" else "held out")
        return f"{drawn['n']} {drawn['sign']} {drawn['m']}"
    random_source(world.seed, "words of tools", name).shuffle(words)
    n = round(HELD_OUT_WORDS * len(words))
    return pick(rng, words[n:] if split == "train" else words[:n])


def large_sums(seed: int, n: int) -> list[str]:
    """Return sums of two numbers larger than any in a dialog: `n plus m`."""
    rng = random_source(seed, "large sums")
    return [
        f"{between(rng, LARGEST_SUMMAND + 1, 999)} plus {between(rng, LARGEST_SUMMAND + 1, 999)}"
        for _ in range(n)
    ]
