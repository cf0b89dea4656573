"""Run by torchrun in test_sharded.py: train a small model whose weights are divided."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llama2_lib import parallel
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise, scalar_model
from llama2_lib.objectives.language import LossTerm, masked_loss
from llama2_lib.training import sharded
from llama2_lib.training.checkpoint import load_checkpoint, save_checkpoint
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw

CONFIG = ModelConfig(
    vocab_size=53, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=37
)
N_ROWS = 7  # no multiple of 2 or 4; a row has from 1 to 7 targets


class Rows(NamedTuple):
    ids: Tensor
    loss_mask: Tensor


def language_model():
    return initialise(Transformer(CONFIG), 3)


class Both(nn.Module):
    """Called by the ways into its parts, as PPO's two networks are."""

    def __init__(self):
        super().__init__()
        self.policy = language_model()
        self.value = scalar_model(self.policy, seed=1)


def batches(start):
    lengths = torch.arange(N_ROWS)[:, None] + 1
    for number in range(start, 100):
        ids = torch.randint(0, 53, (N_ROWS, 12), generator=torch.Generator().manual_seed(number))
        yield Rows(ids, (torch.arange(12) > 0) & (torch.arange(12) <= lengths))


def language_loss(model, rows):
    return masked_loss(model(rows.ids[:, :-1]), rows.ids, rows.loss_mask)


def both_losses(both, rows):
    logits = both.policy.logits(both.policy.hidden(rows.ids[:, :-1]))
    term = masked_loss(logits, rows.ids, rows.loss_mask)
    values = both.value(rows.ids[:, :-1], since=2)
    mean = values.detach().sum() / term.count
    return LossTerm(term.total + values.square().sum(), term.count, {"value": mean})


def trained(model, loss, steps, root=None, optimizer_of=adamw, **settings):
    """Return what each step did, and the weights; go on from what lies in `root`."""
    model = model.double()
    sharded.shard(model, *([model.policy, model.value] if isinstance(model, Both) else []))
    optimizer = optimizer_of(model)
    start = load_checkpoint(root, model, optimizer) if root else 0
    done = list(
        optimize(
            model, optimizer, batches(start), loss, lambda step: 0.01, steps=range(start, steps),
            **settings,
        )
    )  # fmt: skip
    if root:
        save_checkpoint(root, steps, model, optimizer)
    return [tuple(step) for step in done], sharded.whole(model).state_dict()


def by_gradient(model):
    """The weights change by a hundredth of the gradient."""
    return torch.optim.SGD(model.parameters())


def gradients():
    settings = {"clip_norm": 1e9}, {"clip_norm": 0.1, "accumulate": 2}
    kinds = (language_model, language_loss), (Both, both_losses)
    options = [(model(), loss, each) for each in settings for model, loss in kinds]
    return [trained(*kind, 1, optimizer_of=by_gradient, **each) for *kind, each in options]


def until(steps, root):
    return trained(Both(), both_losses, steps, root)


def main(folder, steps):
    with parallel.torchrun(torch.device("cpu")):
        done = until(int(steps), Path(folder)) if int(steps) else gradients()
        if parallel.rank() == 0:
            torch.save(done, Path(folder) / "result.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
