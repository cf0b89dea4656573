"""Generations of a finished model, for people to read."""

from collections.abc import Sequence

from llama2_lib.evaluation.chat import answer, as_dialog
from llama2_lib.evaluation.language import recall_answers
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe
from llama2_lib.text.dialog import Message, encode_prompt, render
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.questions import recall_items

STORY_STARTS = ("One morning", "Once there was", "It was a", "The", "In the evening")


def write_samples(model: Transformer, tokenizer: Tokenizer, recipe: Recipe) -> str:
    """Return ten generations for people to read: five stories and five answers."""
    starts = [tokenizer.encode(text, bos=True) for text in STORY_STARTS]
    room = min(96, recipe.model.max_seq_len - max(map(len, starts)))
    stories = generate(
        model, starts, max_new_tokens=room, temperature=0.7, top_p=0.9,
        seed=recipe.pretrain.seed, stop_ids={tokenizer.eos_id},
    )  # fmt: skip
    lines = [
        f"{text}{tokenizer.decode([*start, *done.ids])[len(text) :]}"
        for text, start, done in zip(STORY_STARTS, starts, stories, strict=True)
    ]
    if recipe.corpus.data is None:
        items = recall_items(make_world(recipe.corpus.world_seed))[::31][:5]
        answers = recall_answers(model, tokenizer, items)
        lines += [
            f"{item.prompt} {answer}   [right: {item.answer}; {item.exposure}]"
            for item, answer in zip(items, answers, strict=True)
        ]
    return "\n---\n".join(lines) + "\n"


def write_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    held_out: Sequence[Sequence[Message]],
    recipe: Recipe,
) -> str:
    """Return ten greedy answers for people to read: to held-out dialogs, and on five facts."""
    context = model.config.max_seq_len
    short = [d for d in held_out if len(encode_prompt(d[:-1], tokenizer)) <= context // 2][:5]
    items = recall_items(make_world(recipe.corpus.world_seed))[::31][:5]
    prompts = [*(dialog[:-1] for dialog in short), *(as_dialog(item) for item in items)]
    remarks = [
        *(f"held out: {dialog[-1]['content']}" for dialog in short),
        *(f"right: {item.answer}; {item.exposure}" for item in items),
    ]
    answers = answer(model, tokenizer, prompts)
    return (
        "\n---\n".join(
            f"{render(prompt)} {said.text}{' </s>' if said.ended else ' ...'}   [{remark}]"
            for prompt, said, remark in zip(prompts, answers, remarks, strict=True)
        )
        + "\n"
    )
