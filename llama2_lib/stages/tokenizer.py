"""The tokenizer stage: learn pieces from documents and chat-formatted dialogs (section 2.2.1)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from llama2_lib.stages.corpus import CorpusConfig, training_documents
from llama2_lib.text.dialog import Message, render
from llama2_lib.text.tokenizer import TokenizerConfig, train_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import dialogs

N_DOCUMENTS, N_DIALOGS = 8_000, 4_000
"""Enough that more of them leave the pieces almost as they are."""


def tokenizer_texts(corpus: CorpusConfig) -> Iterator[str]:
    """Yield what the tokenizer learns from: some documents, and dialogs in the chat format.

    Dialogs are there so that the words of `[INST]` and its kin are pieces: `[INST]` costs three
    (bracket, word, bracket), as in the released tokenizer, which splits where scripts change.
    """
    sample = replace(corpus, n_documents=min(N_DOCUMENTS, corpus.n_documents))
    yield from (document.text for document in training_documents(sample))
    if corpus.data is None:
        world = make_world(corpus.world_seed)
        for dialog in dialogs(world, corpus.world_seed, N_DIALOGS):
            yield render(cast(list[Message], dialog))


def run(config: TokenizerConfig, corpus: CorpusConfig, folder: Path) -> Path:
    """Write `tokenizer.model` into `folder`."""
    return train_tokenizer(tokenizer_texts(corpus), config, folder / "tokenizer.model")
