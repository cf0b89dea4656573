"""What a finished policy rehearses, on the chain of the recipe `toy`."""

import pytest

from llama2_lib import pipeline, storage
from llama2_lib.model.chat import Reply
from llama2_lib.recipes import toy
from llama2_lib.stages import rehearsal
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.ghost_attention import old_ghosts
from llama2_lib.stages.job import Job

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def job(toy_root):
    inputs = {
        name: pipeline.artifact_path(name, toy(), toy_root)
        for name in ("tokenizer", "corpus", "ppo", "ghost_attention")
    }
    return Job(toy(), toy_root, inputs, pipeline.build.choose_device("cpu"), lambda *_: None)


def test_own_answers_are_those_that_ended_and_only_they_are_targets(job, monkeypatch):
    heard = []

    def answer(model, tokenizer, dialogs, **options):
        heard.extend(dialogs)
        assert options["temperature"] == rehearsal.TEMPERATURE
        return [Reply("Yes." if n % 3 else "", [], ended=n % 2 == 0) for n in range(len(dialogs))]

    monkeypatch.setattr(rehearsal, "reply", answer)
    made = rehearsal.own_answers(job, job.model("ppo"), 60, 5, 12)
    assert len(heard) == 60
    assert len(made) == 20  # even and no multiple of three
    for ids, mask in made:
        said = [i for i, target in zip(ids, mask, strict=True) if target]
        assert job.tokenizer.decode(said).strip() == "Yes."
    again = list(heard)
    heard.clear()
    rehearsal.own_answers(job, job.model("ppo"), 60, 6, 12)
    assert heard != again


def test_documents_of_pretraining_are_targets_from_the_second_token_on(job):
    corpus = load_corpus(job.inputs["corpus"])
    every = [tuple(corpus.document(number)) for number in range(len(corpus.kinds))]
    texts = [ids for ids in every if len(ids) <= toy().model.max_seq_len]
    assert len(texts) < len(every)
    made = rehearsal.documents(job, 40, 3)
    assert 20 < len(made) <= 40
    for ids, mask in made:
        assert tuple(ids) in texts
        assert (ids[0], ids[-1]) == (job.tokenizer.bos_id, job.tokenizer.eos_id)
        assert mask == [False] + [True] * (len(ids) - 1)
    assert made != rehearsal.documents(job, 40, 4)
    assert len(rehearsal.documents(job, 10**6, 3)) == len(texts)


def test_documents_stand_beside_a_policys_own_answers(job):
    model = job.model("ppo")
    both = rehearsal.remembered(job, model, 20, 5, 12)
    alone = rehearsal.own_answers(job, model, 20, 5, 12)
    texts = rehearsal.documents(job, round(rehearsal.DOCUMENTS * 20), 5)
    assert both == [*alone, *texts]
    assert texts


def test_most_demonstrations_are_of_what_only_sounds_dangerous(job, monkeypatch):
    asked = []
    real = rehearsal.demonstrated

    def demonstrated(job, n, seed, shares):
        asked.append((n, shares))
        return real(job, n, seed, shares)

    monkeypatch.setattr(rehearsal, "demonstrated", demonstrated)
    assert len(rehearsal.shown(job, 30, 1)) == 30
    assert asked == [(12, rehearsal.SHOWN_SHARES)]
    assert "adversarial" not in rehearsal.SHOWN_SHARES


def test_old_ghosts_are_those_of_the_stage_with_the_instruction_once(job):
    path = job.inputs["ghost_attention"] / "ghosts.jsonl.gz"
    rows = storage.read_rows(path, dict)
    made = old_ghosts(job, "ghost_attention", 10_000, 0)
    assert len(made) == len(rows)
    assert len(old_ghosts(job, "ghost_attention", 2, 0)) == 2
    answers = sorted(row["answer"].strip() for row in rows)
    told = []
    for ids, mask in made:
        told.append(job.tokenizer.decode([i for i, t in zip(ids, mask, strict=True) if t]).strip())
    assert sorted(told) == answers
    longest = max(rows, key=lambda row: len(row["prompt"]))
    words = " ".join(item["text"] for item in longest["instructions"])
    texts = [job.tokenizer.decode(ids) for ids, _ in made]
    assert max(text.count(words) for text in texts) < sum(
        message["role"] == "user" for message in longest["prompt"]
    )
