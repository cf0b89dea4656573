"""The graph of stages and its cache: ask for an artifact, and what is missing is built first.

`artifacts/<stage>/<fingerprint>/` holds a finished stage. The fingerprint covers the stage, its
version, its settings and its inputs' fingerprints, so a changed number never meets stale files.
"""

from llama2_lib.pipeline.build import (
    artifact,
    artifact_path,
    artifact_root,
    artifacts,
    load,
    missing,
    recall,
)
from llama2_lib.pipeline.graph import (
    RED_TEAM_ROUNDS,
    ROUNDS,
    STAGES,
    Job,
    Stage,
    fingerprint,
    fingerprints,
)
from llama2_lib.pipeline.red_team import round_summary
from llama2_lib.pipeline.reward_model import HeldOut, held_out_of, held_out_scores
from llama2_lib.pipeline.rewards import load_rewards
from llama2_lib.pipeline.safety import distilled_rows
from llama2_lib.pipeline.samples import write_samples

__all__ = [
    "RED_TEAM_ROUNDS",
    "ROUNDS",
    "STAGES",
    "HeldOut",
    "Job",
    "Stage",
    "artifact",
    "artifact_path",
    "artifact_root",
    "artifacts",
    "distilled_rows",
    "fingerprint",
    "fingerprints",
    "held_out_of",
    "held_out_scores",
    "load",
    "load_rewards",
    "missing",
    "recall",
    "round_summary",
    "write_samples",
]
