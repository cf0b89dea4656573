"""The harness's numbers of our models: beside its own way with the exported folder, and ours.

Needs the extra `lm-eval`; nothing is fetched, the tasks lie in a file.
"""

import json
import os

import pytest
import torch

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before they are imported
lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402

from llama2_lib import export, pipeline  # noqa: E402
from llama2_lib.bench import lm_eval_adapter  # noqa: E402
from llama2_lib.bench.lm_eval_adapter import HarnessModel  # noqa: E402
from llama2_lib.model.generate import generate  # noqa: E402
from llama2_lib.model.weights import load_model  # noqa: E402
from llama2_lib.objectives.language import next_token_loss  # noqa: E402
from llama2_lib.recipes import toy  # noqa: E402
from llama2_lib.text.tokenizer import load_tokenizer  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
NATS = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(toy_root, tmp_path_factory):
    trained = pipeline.artifact("sft", toy(), device="cpu", root=toy_root, bar=False)
    return export.convert(trained, tmp_path_factory.mktemp("harness") / "toy")


@pytest.fixture(scope="module")
def ours(folder):
    return HarnessModel(load_model(folder)[0], load_tokenizer(folder))


@pytest.fixture
def tasks(tmp_path):
    """Sums with three choices, texts, and lines to write."""
    rows = [
        {
            "text": f"Once there was a baker. Question: What is {a} plus {b}?\nAnswer:",
            "choices": [f" {a + b}", f" {a + b + 1}.", f" {7 * a + b}"],
            "right": (a + b) % 3,
        }
        for a in range(2, 6)
        for b in range(3, 6)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    def task(name, kind, *metrics, **settings):
        return ConfigurableTask(
            config={
                "task": name, "output_type": kind, "test_split": "test", "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(path)}},
                "metric_list": [{"metric": metric} for metric in metrics],
            } | settings
        )  # fmt: skip

    return lambda: [
        task(
            "sums", "multiple_choice", "acc", "acc_norm",
            doc_to_text="{{text}}", doc_to_choice="{{choices}}", doc_to_target="{{right}}",
        ),
        task(
            "lines", "generate_until", "exact_match",
            doc_to_text="{{text[:14]}}", doc_to_target="{{choices[0]}}",
            generation_kwargs={"until": ["er", "zz"], "max_gen_toks": 12, "do_sample": False},
        ),
    ]  # fmt: skip


def asked(kind, *arguments):
    return [Instance(kind, {}, args, 0) for args in arguments]


def evaluated(model, tasks):
    return lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, log_samples=True)


def test_the_harness_says_the_same_of_the_exported_folder(folder, ours, tasks):
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1)
    mine, other = evaluated(ours, tasks()), evaluated(theirs, tasks())
    for name, metrics in {"sums": ("acc", "acc_norm"), "lines": ("exact_match",)}.items():
        for metric in metrics:
            numbers = [float(x["results"][name][f"{metric},none"]) for x in (mine, other)]
            assert numbers[0] == numbers[1]
    nats, greedy = ([r for s in x["samples"]["sums"] for [r] in s["resps"]] for x in (mine, other))
    assert [g for _, g in nats] == [g for _, g in greedy]
    wanted = torch.tensor([n for n, _ in greedy])
    torch.testing.assert_close(torch.tensor([n for n, _ in nats]), wanted, **NATS)
    assert wanted.std() > 0.5, "the answers differ"
    lines = [[s["resps"] for s in x["samples"]["lines"]] for x in (mine, other)]
    assert lines[0] == lines[1]
    assert any(len(line) > 3 for [[line]] in lines[0]), f"something is written: {lines[0]}"


def test_nats_of_a_text_are_those_of_training(ours):
    texts = ["Once there was a baker called Ned. 12 + 3", "x"]
    found = ours.loglikelihood_rolling(asked("loglikelihood_rolling", *((t,) for t in texts)))
    for text, nats in zip(texts, found, strict=True):
        ids = torch.tensor([ours.text.encode(text, bos=True)])
        with torch.no_grad():
            term = next_token_loss(ours.model(ids[:, :-1]), ids)
        torch.testing.assert_close(torch.tensor(-nats), term.total, **NATS)


def test_a_text_longer_than_the_context_is_read_whole(ours):
    context = ours.model.config.max_seq_len
    text = "Once there was a baker. " * context
    ids = ours.text.encode(text)
    assert len(ids) > 2 * context
    [nats] = ours.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    parts = []
    for begin in range(0, len(ids), context):
        new = ids[begin : begin + context]
        before = [1, *ids][: begin + 1][-(context + 1 - len(new)) :]
        with torch.no_grad():
            logits = ours.model(torch.tensor([[*before, *new][:-1]]))[0, -len(new) :]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(new), reduction="sum")
        parts.append(float(losses))
    assert nats == pytest.approx(-sum(parts), rel=1e-5)


def test_greedy_is_said_of_what_the_model_writes(ours):
    prompt = ours.text.encode("Once there was", bos=True)
    [done] = generate(ours.model, [prompt], max_new_tokens=5, temperature=0)
    said = [ours._score(prompt, done.ids), ours._score(prompt, [*done.ids[:-1], done.ids[-1] ^ 1])]
    assert [greedy for _, greedy in said] == [True, False]
    assert said[0][0] == pytest.approx(sum(ours_logprobs(ours, prompt, done.ids)), abs=1e-4)


def ours_logprobs(ours, prompt, ids):
    with torch.no_grad():
        logprobs = ours.model(torch.tensor([[*prompt, *ids]]))[0].log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, index]) for i, index in enumerate(ids)]


def test_writing_stops_at_the_first_of_the_texts_and_fits_the_context(ours, monkeypatch):
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}

    def write(context, **changed):
        [text] = ours.generate_until(asked("generate_until", (context, options | changed)))
        return text

    whole = write("Once there was")
    assert len(whole) > 3
    assert (
        write("Once there was", until=[whole[3], whole[2:]]) == whole[: whole.index(whole[3])][:2]
    )
    read = []

    def reading(model, prompts, **options):
        read.extend(prompts)
        return generate(model, prompts, **options)

    monkeypatch.setattr(lm_eval_adapter, "generate", reading)
    long = "Once there was a baker. " * ours.context + "Who is Ada?"
    write(long)
    assert read == [ours.tok_encode(long)[-(ours.context - 12) :]], "the end is what counts"


def test_what_cannot_be_scored_is_refused(ours):
    with pytest.raises(ValueError, match="tokens can be scored; got 0"):
        ours._score([1], [])
    with pytest.raises(ValueError, match="tokens can be scored"):
        ours._score([1], [5] * (ours.context + 1))
