"""What a stage gets to do its work, and what every trained model leaves beside its weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from llama2_lib import storage
from llama2_lib.config import Recipe
from llama2_lib.evaluation.language import as_dialog, recall_answers
from llama2_lib.model.chat import reply
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model
from llama2_lib.stages.fit import Report
from llama2_lib.stages.folder import source_of
from llama2_lib.text.dialog import encode_prompt, render
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World, recall_items
from llama2_lib.world.source import Source

Text = TypeVar("Text")

STORY_STARTS = ("One morning", "Once there was", "It was a", "The", "In the evening")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one stage."""

    recipe: Recipe
    folder: Path
    """Where the stage leaves what it makes; it becomes the artifact when the stage returns."""
    inputs: dict[str, Path]
    """The finished folders of the stages that this one needs."""
    device: torch.device
    report: Report

    @property
    def tokenizer(self) -> Tokenizer:
        """The chain's tokenizer."""
        return load_tokenizer(self.inputs["tokenizer"])

    @property
    def world(self) -> World:
        """The truth: facts, instructions, attackers."""
        return make_world(self.recipe.corpus.world_seed)

    @property
    def source(self) -> Source:
        """What supplies documents, dialogs, prompts, pairs and perhaps a judge."""
        return source_of(self.recipe.corpus.world_seed, self.recipe.corpus.data)

    def model(self, stage: str) -> Transformer:
        """Return the language model of an input, on the job's device."""
        return load_model(self.inputs[stage], self.device)[0]

    def part(self, begin: float, end: float) -> Report:
        """Return a report for a run that is this part of the stage."""
        return lambda done, words: self.report(begin + (end - begin) * done, words)

    def _write_beside(self, samples: Sequence[str]) -> None:
        tokenizer = (self.inputs["tokenizer"] / "tokenizer.model").read_bytes()
        storage.write_atomically(self.folder / "tokenizer.model", tokenizer)
        storage.write_atomically(self.folder / "samples.txt", "\n---\n".join(samples) + "\n")

    def write_samples(self, model: Transformer) -> None:
        """Leave the tokenizer and ten generations for people to read: stories and answers."""
        tokenizer, recipe = self.tokenizer, self.recipe
        starts = [tokenizer.encode(text, bos=True) for text in STORY_STARTS]
        stories = generate(
            model, starts, max_new_tokens=min(96, recipe.model.max_seq_len - max(map(len, starts))),
            temperature=0.7, top_p=0.9, seed=recipe.pretrain.seed, stop_ids={tokenizer.eos_id},
        )  # fmt: skip
        samples = [
            f"{text}{tokenizer.decode([*start, *done.ids])[len(text) :]}"
            for text, start, done in zip(STORY_STARTS, starts, stories, strict=True)
        ]
        if recipe.corpus.data is None:
            items = recall_items(self.world)[::31][:5]
            samples += [
                f"{item.prompt} {answer}   [right: {item.answer}; {item.exposure}]"
                for item, answer in zip(items, recall_answers(model, tokenizer, items), strict=True)
            ]
        self._write_beside(samples)

    def write_answers(self, model: Transformer, held_out: Sequence[Sequence[Message]]) -> None:
        """Leave the tokenizer and ten greedy answers: to held-out dialogs, and on five facts."""
        tokenizer, longest = self.tokenizer, model.config.max_seq_len // 2
        short = [d for d in held_out if len(encode_prompt(d[:-1], tokenizer)) <= longest][:5]
        items = [] if self.recipe.corpus.data else recall_items(self.world)[::31][:5]
        prompts = [*(dialog[:-1] for dialog in short), *(as_dialog(item) for item in items)]
        remarks = [
            *(f"held out: {dialog[-1]['content']}" for dialog in short),
            *(f"right: {item.answer}; {item.exposure}" for item in items),
        ]
        replies = reply(model, tokenizer, prompts)
        self._write_beside(
            [
                f"{render(prompt)} {answer.text}{' </s>' if answer.ended else ' ...'}   [{remark}]"
                for prompt, answer, remark in zip(prompts, replies, remarks, strict=True)
            ]
        )


def variant_of(recipe: Recipe, stage: str) -> Any:
    """Return the section that only one stage has, which most recipes leave out."""
    section = getattr(recipe, stage)
    if section is None:
        raise ValueError(
            f"the stage {stage} needs a variant; the recipe {recipe.name!r} has none. Set its "
            f"field `{stage}`."
        )
    return section


def unseen(
    kind: str, stream: Iterable[Text], n: int, tries: int, seen: set[str],
    spelled: Callable[[Text], str],
) -> list[Text]:  # fmt: skip
    """Return the first n texts of a stream of `tries` that are spelled unlike all in `seen`.

    None comes twice. Short texts repeat, so there must be more of them than are asked for.
    """
    fresh: dict[str, Text] = {}
    for text in stream:
        spelling = spelled(text)
        if spelling not in seen:
            fresh.setdefault(spelling, text)
        if len(fresh) == n:
            return list(fresh.values())
    raise ValueError(
        f"n_validation={n} unseen {kind} were asked for; the world gave {len(fresh)} in {tries} "
        "tries. Ask for fewer."
    )
