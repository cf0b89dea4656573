"""What the lessons use of every floor, under one name: `from llama2_lib import lesson as lab`.

A lesson imports its own subject by name; all that it only uses comes from here, and `lab.NAME?` in
a cell shows where it lives.
"""

from llama2_lib.claims.attention import at_equal_size, quality_recipes
from llama2_lib.claims.chain import new_prompts
from llama2_lib.claims.claim import above
from llama2_lib.claims.corpus import UNSEEN_TEXTS, true_shares
from llama2_lib.claims.evaluation import full_text, leaked
from llama2_lib.claims.ghost_attention import plain_dialog
from llama2_lib.claims.ledger import CLAIMS, recorded
from llama2_lib.claims.recorded_runs import (
    TEMPERATURES,
    recorded_answers,
    recorded_pairs,
    recorded_run,
)
from llama2_lib.config import VERSIONS, PpoConfig, PretrainConfig
from llama2_lib.evaluation.chat_report import report, table
from llama2_lib.evaluation.diagnostics import lights
from llama2_lib.evaluation.emergent import self_bleu, time_sense, tool_use
from llama2_lib.evaluation.judged import (
    false_refusals,
    gains_by_original,
    gold_marks,
    improvement,
    marks_of,
    violations_by,
    win_rate,
)
from llama2_lib.evaluation.language import (
    answer_loss,
    chat_recall,
    document_nats,
    ended_share,
    fact_recall,
    perplexity,
)
from llama2_lib.evaluation.reward import accuracy, calibration, detection
from llama2_lib.evaluation.statistics import (
    bootstrap_mean,
    mean_interval,
    paired_difference,
    proportion,
    proportion_exact,
    ratio_interval,
)
from llama2_lib.figures import bars_with_intervals, heatmap, lines, new_figure
from llama2_lib.figures.alignment import accuracy_by_grade as draw_by_grade
from llama2_lib.figures.alignment import (
    best_of_n_curves,
    frontier,
    models_by_test_sets,
    rewards_by_round,
    score_histograms,
    token_reward_bars,
    traffic_lights,
)
from llama2_lib.figures.alignment import calibration as draw_calibration
from llama2_lib.figures.course import Box, Node, Tile, chain, diagram, ledger_map
from llama2_lib.figures.curves import attention_map
from llama2_lib.figures.text import (
    LEARNED,
    MarkedAnswer,
    dialog_rows,
    marked_answers,
    masked_pieces,
    piece_boxes,
)
from llama2_lib.figures.theme import label_axes
from llama2_lib.model.chat import reply, scored_row, scores
from llama2_lib.model.config import FAMILY, LLAMA2_7B, LLAMA2_70B, ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import (
    Transformer,
    attention_weights,
    initialise,
    masked,
    scalar_model,
)
from llama2_lib.model.weights import build, load_model, to_hugging_face
from llama2_lib.objectives.language import LossTerm, masked_loss, next_token_loss
from llama2_lib.objectives.rlhf import pairwise_accuracy, ranking_loss, safety_auxiliary_loss
from llama2_lib.pipeline import artifact, load
from llama2_lib.recipes import grid, nano
from llama2_lib.rng import generator, random_source, seed_from
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.fit import dialog_loss
from llama2_lib.stages.prompts import sample_prompts
from llama2_lib.stages.reward import Rewarded, load_rewards
from llama2_lib.stages.sft import examples, training_dialogs
from llama2_lib.storage import read_metrics, read_rows, release_root
from llama2_lib.text.dialog import encode_example, encode_prompt, render
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.training.batches import PackedDialogs, PairedAnswers
from llama2_lib.training.checkpoint import checkpoints
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw, warmup_then_cosine
from llama2_lib.world import documents, make_world
from llama2_lib.world.attackers import strategies
from llama2_lib.world.audit import audit
from llama2_lib.world.demonstrations import NOISE_RATES, borderline_training
from llama2_lib.world.dialogs import dialogs
from llama2_lib.world.facts import answers, recall_items
from llama2_lib.world.instructions import (
    Instruction,
    as_dialog,
    briefs,
    instructions,
    obeys,
    worded,
)
from llama2_lib.world.judges import SAFE, WEIGHTS, Helpfulness, judge_of, words_of
from llama2_lib.world.long_range import retrieval_items
from llama2_lib.world.pairs import degrader
from llama2_lib.world.prompts import (
    adversarial_prompts,
    borderline_prompts,
    helpful_prompts,
    prompts,
)
from llama2_lib.world.risks import ATTACKS, risk_maker
from llama2_lib.world.source import WorldSource
from llama2_lib.world.tasks import CATEGORIES, answer_writer
