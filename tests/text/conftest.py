"""A tiny SentencePiece model that has seen the chat format, trained once per session."""

import random

import pytest

from llama2_lib.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

SENTENCE = "the man who lives in Ambra is a baker and she likes plums what does he do 18 44 + 7 ="
WORDS = SENTENCE.split()


@pytest.fixture(scope="session")
def chat_texts() -> list[str]:
    source = random.Random(5)

    def line() -> str:
        return " ".join(source.choice(WORDS) for _ in range(8))

    plain = [f"[INST] {line()} [/INST] {line()} " for _ in range(300)]
    system = [
        f"[INST] <<SYS>>\n{line()}\n<</SYS>>\n\n{line()} [/INST] {line()} " for _ in range(150)
    ]
    return plain + system


@pytest.fixture(scope="session")
def chat_tokenizer(chat_texts, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(chat_texts, TokenizerConfig(vocab_size=360), path))
