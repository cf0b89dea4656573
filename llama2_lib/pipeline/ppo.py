"""How PPO is run: its prompts, its reward models, and what it is measured on meanwhile."""

import copy
from dataclasses import dataclass

from llama2_lib import rng
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.preference import gold_marks
from llama2_lib.model.heads import scalar_model
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.rejection import unseen_dialogs
from llama2_lib.pipeline.rewards import answered, load_rewards
from llama2_lib.pipeline.samples import write_answers
from llama2_lib.pipeline.stage import Job
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import Asked, ask
from llama2_lib.stages.ppo import ppo, prompt_stream
from llama2_lib.stages.reward import RewardModels
from llama2_lib.stages.rollout import ActorCritic
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.facts import World

ITERATION_STEPS = 12
"""For the progress bar: an iteration takes about as long as so many pretraining steps."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Measures a policy on prompts that no gradient ever sees.

    The gold judges are an outside check; nothing in training reads what they say.
    """

    asked: Asked
    world: World
    tokenizer: Tokenizer
    models: RewardModels
    max_new_tokens: int
    seed: int

    def __call__(self, policy: Transformer) -> dict[str, float]:
        """Return mean rewards, raw, and mean gold marks of one sampled answer to each prompt."""
        dialogs = self.asked.dialogs
        said = answer(
            policy, self.tokenizer, dialogs, temperature=1.0, seed=self.seed,
            max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        context = policy.config.max_seq_len
        rows = [
            answered(d, a.text, self.tokenizer, context) for d, a in zip(dialogs, said, strict=True)
        ]
        found = self.models(rows, self.asked.tags)
        marks = gold_marks(self.world, self.asked.prompts, [reply.text for reply in said])
        harmless = ~marks.adversarial
        return {
            "held_out_reward": float(found.combined.mean()),
            "held_out_helpfulness": float(found.helpfulness[harmless].mean()),
            "held_out_safety": float(found.safety[~harmless].mean()),
            "held_out_finished": sum(reply.ended for reply in said) / len(said),
            "gold_quality": float(marks.quality.mean()),
            "gold_helpfulness": float(marks.helpfulness[harmless].mean()),
            "gold_safety": float(marks.safety[~harmless].mean()),
        }


def held_out(recipe: Recipe, tokenizer: Tokenizer, models: RewardModels) -> HeldOut:
    """Return the measure of a PPO run: training wordings, but prompts of another stream."""
    config, world = recipe.ppo, make_world(recipe.corpus.world_seed)
    seed = rng.seed_from(config.seed, "ppo held out")
    longest = recipe.model.max_seq_len - config.max_new_tokens
    asked = ask(world, seed, config.n_held_out, tokenizer, longest=longest)
    return HeldOut(asked, world, tokenizer, models, config.max_new_tokens, seed)


def ppo_prompts(recipe: Recipe, tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
    """Return the encoded training prompts with their tags; short ones only."""
    config, world = recipe.ppo, make_world(recipe.corpus.world_seed)
    seed = rng.seed_from(config.seed, "ppo prompts")
    asked = ask(world, seed, config.n_prompts, tokenizer, longest=config.longest_prompt)
    return list(zip(asked.ids, asked.tags, strict=True))


def run_ppo(job: Job, start: str, rewards: str) -> None:
    """Run PPO from the policy of the stage `start` against the models of the stage `rewards`."""
    recipe, config, tokenizer = job.recipe, job.recipe.ppo, job.tokenizer
    models = load_rewards(job.inputs[rewards], job.device)
    policy = job.model(start)
    model = ppo(
        config,
        # The value function knows answers as the reward model does; its head starts at zero.
        ActorCritic(policy, scalar_model(models.helpfulness.backbone)),
        copy.deepcopy(policy).requires_grad_(False),
        prompt_stream(ppo_prompts(recipe, tokenizer), config.batch_size, config.seed),
        models,
        held_out(recipe, tokenizer, models),
        job.folder,
        eos_id=tokenizer.eos_id,
        report=lambda done, words: job.report(ITERATION_STEPS * done, words),
    )
    job.write_beside(write_answers(model, tokenizer, unseen_dialogs(job), recipe))
