"""The corpus: what is in it, that validation is unseen, and text from a folder."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.config import CorpusConfig
from llama2_lib.recipes import toy
from llama2_lib.stages import corpus as stage
from llama2_lib.stages.corpus import (
    build_corpus,
    load_corpus,
    tokenizer_texts,
    training_documents,
    validation_documents,
)
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world.documents import SHARES, Document

CONFIG = CorpusConfig(n_documents=70, n_validation=9)


@pytest.fixture(scope="module")
def tokenizer(toy_root) -> Tokenizer:
    return load_tokenizer(pipeline.artifact_path("tokenizer", toy(), toy_root))


@pytest.fixture
def toy_corpus(toy_root):
    return pipeline.artifact_path("corpus", toy(), toy_root)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_every_document_is_bos_pieces_eos_and_decodes_to_its_text(toy_corpus, tokenizer, name):
    config = toy().corpus
    train = list(training_documents(config))
    validation = [*validation_documents(config, train).values()]
    documents = {"train": train, "validation": validation}[name]
    split = load_corpus(toy_corpus, name)
    assert split.packed.n_documents == len(documents) == {"train": 600, "validation": 40}[name]
    for index, document in enumerate(documents):
        ids = split.document(index)
        assert ids == tokenizer.encode(document.text, bos=True, eos=True)
        assert tokenizer.decode(ids) == document.text
    assert split.kinds == [document.kind for document in documents]
    assert split.characters.tolist() == [len(document.text) for document in documents]


def test_no_validation_document_was_trained_on_and_none_comes_twice(toy_corpus):
    train, validation = load_corpus(toy_corpus), load_corpus(toy_corpus, "validation")
    seen = {tuple(train.document(i)) for i in range(train.packed.n_documents)}
    fresh = [tuple(validation.document(i)) for i in range(validation.packed.n_documents)]
    assert not seen & set(fresh)
    assert len(set(fresh)) == len(fresh) == 40
    assert set(validation.kinds) <= set(SHARES)
    assert len(set(validation.kinds)) >= 5


def test_a_validation_stream_that_repeats_the_training_texts_is_refused(monkeypatch):
    def repeating(source, seed, n, shares):
        return iter([Document("story", f"text {i % 3}", "en") for i in range(n)])

    monkeypatch.setattr(stage.WorldSource, "documents", repeating)
    train = [Document("story", "text 1", "en")]
    unseen = validation_documents(replace(CONFIG, n_validation=2), train)
    assert [*unseen] == ["text 0", "text 2"] == [d.text for d in unseen.values()]
    with pytest.raises(ValueError, match=r"n_validation=3 unseen .* gave 2 in 60 tries"):
        validation_documents(replace(CONFIG, n_validation=3), train)


def test_the_same_settings_give_the_same_bytes_and_others_do_not(tokenizer, tmp_path):
    contents = {}
    variants = {
        "first": CONFIG,
        "again": CONFIG,
        "other world": replace(CONFIG, world_seed=1),
        "other shares": replace(CONFIG, shares=(("story", 0.5), ("sums", 0.5))),
    }
    for name, config in variants.items():
        (tmp_path / name).mkdir()
        build_corpus(config, tokenizer, tmp_path / name)
        contents[name] = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    assert len(contents["first"]) == 3
    assert contents["again"] == contents["first"]
    for name in ("other world", "other shares"):
        assert contents[name]["train.npz"] != contents["first"]["train.npz"]
    assert set(load_corpus(tmp_path / "other shares").kinds) == {"story", "sums"}


class ManyPieces(Tokenizer):
    """A tokenizer with more pieces than 16 bits can count."""

    def __init__(self, n_words):
        self.vocab_size, self.bos_id, self.eos_id = n_words, 1, 2

    def encode_batch(self, texts):
        return [[self.vocab_size - 1, 5, self.vocab_size - 1 - len(text)] for text in texts]


@pytest.mark.parametrize(("n_words", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_stored_in_as_many_bits_as_the_vocabulary_needs(tmp_path, n_words, dtype):
    write_texts(tmp_path / "texts")
    build_corpus(CorpusConfig(data=str(tmp_path / "texts")), ManyPieces(n_words), tmp_path)
    assert load_corpus(tmp_path).packed.ids.dtype == dtype
    assert isinstance(load_corpus(tmp_path).packed.ids, np.memmap)
    build_corpus(CONFIG, ManyPieces(n_words), tmp_path)
    split = load_corpus(tmp_path)
    assert split.packed.ids.dtype == dtype
    length = int(split.characters[3])
    assert split.document(3) == [1, n_words - 1, 5, n_words - 1 - length, 2]


def write_texts(folder, n=12):
    """Three text files and the rest in one .jsonl, which comes after a.txt and before c.txt."""
    folder.mkdir(exist_ok=True)
    texts = [f"document number {i}: the {'very ' * i}old house." for i in range(n)]
    (folder / "a.txt").write_text(texts[0])
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts[1:-1])
    )
    (folder / "c.txt").write_text(texts[-1])
    (folder / "notes.md").write_text("not a document")
    return texts


def test_a_folder_of_text_takes_the_place_of_the_world(tmp_path, tokenizer):
    texts = write_texts(tmp_path / "texts", 40)
    # The numbers are those of the world: a folder is read whole, and a share of it held out.
    config = CorpusConfig(data=str(tmp_path / "texts"), n_documents=5, n_validation=30)
    (tmp_path / "corpus").mkdir()
    build_corpus(config, tokenizer, tmp_path / "corpus")
    train, validation = (load_corpus(tmp_path / "corpus", n) for n in ("train", "validation"))
    assert [tokenizer.decode(validation.document(i)) for i in range(2)] == texts[:2]
    assert [tokenizer.decode(train.document(i)) for i in range(38)] == texts[2:]
    assert (train.packed.n_documents, validation.packed.n_documents) == (38, 2)
    assert set(train.kinds) == {"file"}
    counts = json.loads((tmp_path / "corpus" / "counts.json").read_text())
    assert counts == {"documents": 40, "left out": 0}


def test_a_copy_of_a_training_text_is_no_validation_text(tmp_path, tokenizer):
    texts = write_texts(tmp_path / "texts", 59)
    (tmp_path / "texts" / "z.txt").write_text(texts[1])
    config = CorpusConfig(data=str(tmp_path / "texts"))
    train = list(training_documents(config))
    assert texts[1] in {document.text for document in train}
    assert [*validation_documents(config, train)] == [texts[0], texts[2]]
    build_corpus(config, tokenizer, tmp_path)
    assert json.loads((tmp_path / "counts.json").read_text()) == {"documents": 60, "left out": 1}


def test_a_folder_with_too_few_documents_is_refused(tmp_path, tokenizer):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("The only document.")
    config = CorpusConfig(data=str(tmp_path / "texts"))
    with pytest.raises(ValueError, match="others to validate with; got 0 and 1 that are no copies"):
        build_corpus(config, tokenizer, tmp_path)


def test_the_tokenizer_learns_from_documents_and_dialogs_of_the_world():
    texts = list(itertools.islice(tokenizer_texts(CONFIG), 400))
    documents = [document.text for document in training_documents(CONFIG)]
    assert texts[:70] == documents
    assert all(text.startswith("<s>[INST] ") for text in texts[70:])
    assert sum("<<SYS>>" in text for text in texts[70:]) > 10


def test_the_tokenizer_never_reads_validation_texts_of_a_folder(tmp_path):
    texts = write_texts(tmp_path / "texts")
    config = CorpusConfig(data=str(tmp_path / "texts"))
    assert list(tokenizer_texts(config)) == texts[1:]
