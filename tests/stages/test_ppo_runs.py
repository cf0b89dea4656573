"""Runs of PPO on toy models: prompts, what moves, what is frozen, resuming, stopping, learning."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from llama2_lib.config import PpoConfig
from llama2_lib.model.chat import Reply
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise, scalar_model
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import toy
from llama2_lib.stages import ppo as ppo_stage
from llama2_lib.stages.ppo import ActorCritic, Ppo, prompt_stream, sample_answers, train
from llama2_lib.stages.reward import Rewarded, RewardModels
from llama2_lib.storage import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, EOS, LIKED = 11, 2, 7
PROMPTS = [([1, 3 + row % 4, 3 + row % 5], row % 2 == 0) for row in range(24)]


def network(seed=0, vocab=VOCAB, scale=1.0, dtype=torch.float32):
    shape = ModelConfig(
        vocab_size=vocab, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8,
        max_seq_len=13,
    )  # fmt: skip
    model = initialise(Transformer(shape), seed).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(scale)
    return model


def config(**changes):
    given = {
        "iterations": 3, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 5, "lr": 1e-2,
        "value_warmup": 0, "whiten_by": "batch", "eval_every": 1000, "save_every": 1000,
    }  # fmt: skip
    return PpoConfig(**(given | changes))


def share(rows, tags):
    """Which share of an answer, EOS aside, is the symbol that is liked: 1 at most."""
    answers = [[t for t in row[3:] if t != EOS] for row in rows]
    values = np.array([sum(t == LIKED for t in a) / max(1, len(a)) for a in answers])
    return Rewarded(values, values, values)


def nothing(policy):
    return {"held_out_reward": 0.0}


class Measured:
    """Gives held-out rewards by list, and remembers the policies."""

    def __init__(self, values):
        self.values, self.seen = list(values), []

    def __call__(self, policy):
        self.seen.append(weights(policy))
        return {"held_out_reward": self.values[len(self.seen) - 1]}


def weights(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def stored(found):
    """Weights as they are left behind: in half precision."""
    return {name: tensor.half().float() for name, tensor in found.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Run:
    """One run, and everything that took part in it."""

    def __init__(self, settings, folder, *, policy=None, reference=None, **given):
        policy = policy or network()
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.start, self.reports = weights(policy), []
        self.model = ActorCritic(policy, scalar_model(network(5), seed=7))
        self.value_start = weights(self.model.value)
        self.reference = copy.deepcopy(policy) if reference is None else reference
        watch = given.get("watch", lambda done, model: None)

        def listen(done, words):
            self.reports.append(round(done * (settings.value_warmup + settings.iterations)))
            watch(self.reports[-1], self.model)

        ppo = Ppo(
            config=settings,
            model=self.model,
            reference=self.reference,
            rewards=given.get("rewards", share),
            eos_id=EOS,
        )
        prompts = given.get("prompts") or prompt_stream(PROMPTS, settings.batch_size, settings.seed)
        self.policy = train(ppo, prompts, given.get("measure", nothing), folder, listen)

    @property
    def rows(self):
        return [row for row in read_metrics(self.folder / "metrics.jsonl") if "kl" in row]

    @property
    def last(self):
        return weights(self.model.policy)


def test_the_first_step_of_every_iteration_is_on_policy(tmp_path):
    run = Run(config(iterations=4), tmp_path)
    assert [row["step"] for row in run.rows] == run.reports == [1, 2, 3, 4]
    assert [row["first_approx_kl"] for row in run.rows] == [0.0] * 4
    assert all(row["approx_kl"] > 1e-7 for row in run.rows)  # of all steps
    assert run.rows[0]["kl"] == run.rows[0]["exact_kl"] == 0.0
    assert all(row["exact_kl"] > 1e-6 for row in run.rows[1:])


def test_a_rate_of_0_changes_no_bit_over_three_iterations(tmp_path):
    run = Run(config(lr=0.0), tmp_path / "still")
    assert same(run.start, run.last)
    assert same(run.value_start, weights(run.model.value))
    assert [row["kl"] for row in run.rows] == [row["exact_kl"] for row in run.rows] == [0.0] * 3
    moving = Run(config(), tmp_path / "moving")
    assert not same(moving.start, moving.last)


def test_without_beta_the_reference_affects_nothing(tmp_path):
    def last(beta, seed):
        settings = config(beta=beta, missing_eos_score=0.0)
        return Run(settings, tmp_path / f"{beta}-{seed}", reference=network(seed, scale=9)).last

    assert same(last(0.0, 1), last(0.0, 2))
    assert not same(last(0.3, 1), last(0.3, 2))


def test_reference_and_reward_models_are_frozen(tmp_path):
    models = RewardModels(*[scalar_model(network(s, scale=9), seed=s) for s in (3, 4)])
    parts = (models.helpfulness, models.safety)
    before = [weights(model) for model in parts]
    run = Run(config(), tmp_path, rewards=models)
    assert same(weights(run.reference), run.start)
    assert all(same(weights(m), b) for m, b in zip(parts, before, strict=True))
    assert all(p.grad is None for m in (*parts, run.reference) for p in m.parameters())
    assert not same(run.start, run.last)
    assert not same(run.value_start, weights(run.model.value))


def test_a_reference_that_shares_weights_is_refused(tmp_path):
    policy = network()
    partly = copy.deepcopy(policy)
    partly.tok_embeddings.weight = policy.tok_embeddings.weight
    for reference in (policy, partly):
        with pytest.raises(AssertionError, match="must be a copy of the policy"):
            Run(config(), tmp_path, policy=policy, reference=reference)
    assert not list(tmp_path.iterdir())


def test_while_the_value_function_warms_up_the_policy_keeps_every_bit(tmp_path):
    policies, values = [], []

    def watch(done, model):
        policies.append(weights(model.policy))
        values.append(weights(model.value))

    run = Run(config(iterations=1, value_warmup=3), tmp_path, watch=watch)
    assert [same(run.start, policy) for policy in policies] == [True, True, True, False]
    assert not any(same(a, b) for a, b in itertools.pairwise([run.value_start, *values]))
    assert ["approx_kl" in row for row in run.rows] == [False, False, False, True]
    assert [row["kl"] for row in run.rows] == [0.0] * 4  # of the answers before the step


class Stopped(Exception):
    """Stands for a killed process."""


RESUMED = config(iterations=5, value_warmup=2, eval_every=1, save_every=2, patience=9)


@pytest.fixture(scope="module", params=[1, -1], ids=["best late", "best early"])
def measure(request):
    """A function of the policy, as a resumed run needs."""
    return lambda policy: {
        "held_out_reward": request.param * policy.output.weight.detach().double().sum().item()
    }


@pytest.fixture(scope="module")
def whole(measure, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Run(RESUMED, tmp_path_factory.mktemp("ppo") / "whole", measure=measure)
    torch.set_num_threads(before)
    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("stop", "resumed_at"), [(1, 1), (2, 3), (3, 3), (4, 5)])
def test_stopped_and_started_again_a_run_ends_with_the_same_bits(
    whole, measure, tmp_path, stop, resumed_at
):
    def stopping(done, model):
        if done == stop:
            raise Stopped

    with pytest.raises(Stopped):
        Run(RESUMED, tmp_path, measure=measure, watch=stopping)
    again = Run(RESUMED, tmp_path, measure=measure)
    assert again.reports == list(range(resumed_at, 8))
    assert files(tmp_path) == files(whole.folder)
    assert set(files(tmp_path)) == {"model.safetensors", "config.json", "metrics.jsonl"}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # no checkpoint is left
    assert same(weights(again.policy), weights(whole.policy))


def test_a_run_goes_on_though_its_log_was_lost(measure, tmp_path):
    def stopping(done, model):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        Run(RESUMED, tmp_path, measure=measure, watch=stopping)
    (tmp_path / "metrics.jsonl").write_bytes(b"")  # checkpoints are flushed to disk, logs are not
    assert Run(RESUMED, tmp_path, measure=measure).reports[-1] == 7


def test_the_seed_decides_the_run(tmp_path):
    def run(name, seed):
        settings = replace(RESUMED, iterations=2, seed=seed)
        return files(Run(settings, tmp_path / name, prompts=prompt_stream(PROMPTS, 8, 0)).folder)

    one = run("one", 0)
    assert run("same", 0) == one
    assert run("other", 1)["metrics.jsonl"] != one["metrics.jsonl"]


def test_the_best_policy_on_held_out_prompts_is_what_is_left(tmp_path):
    measure = Measured([0.1, 0.4, 0.9, 0.9, 0.3])
    run = Run(config(iterations=4, eval_every=1), tmp_path, measure=measure)
    best = measure.seen[2]  # the first of two equal ones
    assert same(weights(run.policy), stored(best))
    assert same(weights(load_model(tmp_path)[0]), stored(best))
    assert not same(stored(best), stored(run.last))
    assert not same(stored(best), stored(measure.seen[3]))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    held_out = [(row["step"], row["held_out_reward"]) for row in rows if "held_out_reward" in row]
    assert held_out == list(enumerate(measure.values))


def test_it_may_be_where_the_run_began(tmp_path):
    run = Run(config(eval_every=1), tmp_path, measure=Measured([0.5, 0.1, 0.2, 0.3]))
    assert same(weights(run.policy), stored(run.start))


@pytest.mark.parametrize(
    ("values", "iterations"),
    [
        ([5, 1, 1, 1, 1, 1, 1], 2),
        ([1, 2, 1, 3, 1, 1, 1], 5),
        ([1, 2, 2, 2, 3, 3, 3], 3),
        ([1, 2, 1, 3, 1, 4, 1], 6),
    ],
)
def test_it_stops_when_nothing_better_came_for_long(tmp_path, values, iterations):
    settings = config(iterations=6, eval_every=1, patience=2)
    assert Run(settings, tmp_path, measure=Measured(values)).reports[-1] == iterations


def test_the_last_policy_is_measured(tmp_path):
    run = Run(config(iterations=2, value_warmup=3), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "held_out_reward" in row] == [0, 5]


def test_the_warm_up_does_not_use_up_the_patience(tmp_path):
    settings = config(iterations=3, value_warmup=3, eval_every=1, patience=2)
    run = Run(settings, tmp_path, measure=Measured([1, 2, 3, 4]))
    assert run.reports[-1] == 6


@pytest.mark.slow
def test_it_learns_to_say_one_symbol_only(tmp_path):
    settings = config(
        iterations=40, batch_size=64, minibatch_size=16, max_new_tokens=6, beta=0.0,
        weight_decay=0.0, eval_every=5, patience=99,
    )  # fmt: skip
    held_out = [([1, 3 + row % 5, 4 + row % 3], False) for row in range(64)]

    def measure(policy):
        said = sample_answers(policy, held_out, settings, 99, EOS)
        return {"held_out_reward": float(share([s.ids for s in said], None).combined.mean())}

    Run(settings, tmp_path, prompts=prompt_stream(PROMPTS * 3, 64, 0), measure=measure)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    reached = [row["held_out_reward"] for row in rows if "held_out_reward" in row]
    assert reached[0] < 0.2
    assert max(reached) > 0.95


def test_a_run_that_diverges_stops_at_once(tmp_path):
    with pytest.raises(FloatingPointError, match="loss and gradient must be finite"):
        Run(config(lr=1e30, clip_norm=1e30), tmp_path)


def test_a_value_function_of_another_tokenizer_is_refused():
    ActorCritic(network(), scalar_model(network()))
    with pytest.raises(AssertionError, match="two vocabularies"):
        ActorCritic(network(), scalar_model(network(vocab=12)))


def test_all_prompts_come_before_any_comes_twice():
    numbered = [([1, row], row % 2 == 0) for row in range(12)]
    of = prompt_stream(numbered, 4, seed=0)
    drawn = [of(iteration) for iteration in range(6)]
    first, second = ([*drawn[i], *drawn[i + 1], *drawn[i + 2]] for i in (0, 3))
    assert sorted(first) == sorted(second) == numbered
    assert first != second
    assert of(4) == drawn[4]  # a function of the number: a resumed run needs no state
    assert prompt_stream(numbered, 4, seed=1)(0) != drawn[0]
    assert sorted(prompt_stream(numbered, 12, seed=0)(1)) == numbered
    with pytest.raises(ValueError, match="an iteration needs 13 prompts; got 12"):
        prompt_stream(numbered, 13, seed=0)


def test_a_rest_of_prompts_comes_before_any_comes_twice():
    of = prompt_stream([([1, row], False) for row in range(10)], 4, seed=0)
    drawn = [prompt for iteration in range(5) for prompt in of(iteration)]
    assert len({ids[1] for ids, _ in drawn[:10]}) == 10


def test_the_held_out_measure_scores_answers_as_they_were_sampled(tokenizer, monkeypatch):
    """An answer that met the limit has no EOS; read from its text it would be a finished one."""
    ids = tokenizer.encode("Yes")
    seen = []

    def replies(policy, tok, dialogs, **options):
        ends = [[], [EOS]]
        return [
            Reply(text="Yes", ids=[*ids, *ends[row % 2]], ended=row % 2 == 1)
            for row, _ in enumerate(dialogs)
        ]

    def rewards(models, rows, tags):
        seen.extend(rows)
        return Rewarded(*(np.zeros(len(rows)) for _ in range(3)))

    monkeypatch.setattr(ppo_stage, "reply", replies)
    monkeypatch.setattr(RewardModels, "__call__", rewards)
    models = RewardModels(scalar_model(network()), scalar_model(network()))
    ppo_stage.held_out(toy(), tokenizer, models)(network())
    assert len(seen) == toy().ppo.n_held_out
    for number, row in enumerate(seen):
        assert row[-len(ids) :] == ids or row[-len(ids) - 1 :] == [*ids, EOS]
        assert (row[-1] == EOS) == (number % 2 == 1)
