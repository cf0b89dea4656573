"""How a divided model generates: from its parts, or from weights gathered once (section 3.2.3)."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import torch

from llama2_lib import parallel
from llama2_lib.claims.claim import Claim, Must, Trust, mean
from llama2_lib.config import Recipe
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import KVCache, Transformer, initialise
from llama2_lib.training import sharded

BATCH, PROMPT, WRITTEN, ROUNDS = 16, 8, 24, 3
"""Of one timing: rows, tokens of each prompt, tokens written after it; the best timing counts."""


def measure_gathering(recipe: Recipe, seed: int, n: int = 2) -> dict[str, float]:
    """Time greedy answers of the recipe's model, divided among n processes of one thread.

    Keys: `seconds/parts`, gathering each block for every token; `seconds/whole`, gathering all
    once before the first; `slowdown`, the one over the other.
    """
    command = f"-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node={n}"
    model, env = json.dumps(asdict(recipe.model)), os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command.split(), "-m", "llama2_lib.claims.scale", model, str(seed)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ChildProcessError(f"{n} processes must generate; they ended with: {done.stderr}")
    return json.loads(done.stdout)


@torch.no_grad()
def _written(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Go on with the prompts, in the same steps whether or not the weights are divided."""
    cache, rows = KVCache(model.config, BATCH, PROMPT + WRITTEN), [ids]
    for _ in range(WRITTEN):
        logits = model.logits(model.hidden(rows[-1], attend=cache)[:, -1:])
        rows.append(logits.argmax(dim=-1))
    return torch.cat(rows, dim=1)


def _times(config: ModelConfig, seed: int) -> dict[str, float]:
    model = initialise(Transformer(config), seed)
    sharded.shard(model)
    ids, rounds = torch.arange(BATCH * PROMPT).view(BATCH, -1) % config.vocab_size, []
    for _ in range(ROUNDS + 1):  # the first warms up
        parallel.gathered("ready")
        start = time.perf_counter()
        by_parts = _written(model, ids)
        between = time.perf_counter()
        at_once = _written(sharded.whole(model), ids)
        rounds.append((between - start, time.perf_counter() - between))
        assert torch.equal(at_once, by_parts)
    parts, whole = map(min, zip(*rounds[1:], strict=True))
    return {"seconds/parts": parts, "seconds/whole": whole, "slowdown": parts / whole}


CLAIMS = (
    Claim(
        id=30, section="3.2.3", paper_trust=Trust.PRINTED,
        statement="Generating from divided weights is slow; gathering them once first is the cure.",
        paper_value="about 20 times slower under FSDP, even with large batches and a cache",
        prediction="Answers from divided weights take more than twice as long as from weights "
        "gathered once, the gathering included. Two processes of one machine: less is moved, and "
        "less far, than in the paper.",
        where=f"Seconds for {WRITTEN} tokens of {BATCH} answers",
        tests=(Must("from parts over gathered once", mean("slowdown"), above=2, named=""),),
        shown=("seconds",), measured_by=measure_gathering,
    ),
)  # fmt: skip


if __name__ == "__main__":
    with parallel.torchrun(torch.device("cpu")):
        times = _times(ModelConfig(**json.loads(sys.argv[1])), int(sys.argv[2]))
        print(json.dumps(times) * (parallel.rank() == 0), flush=True)
    os._exit(0)  # see `llama2_lib.__main__`
