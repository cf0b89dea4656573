"""A scalar in place of the next-token logits: reward models and value functions (section 3.2.2).

The paper replaces the head for next-token prediction by a regression head that gives one number,
and keeps everything else of the chat checkpoint.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.transformer import Attend, Ids, Transformer, causal


class ScalarModel(nn.Module):
    """A transformer that gives one number for every position.

    A reward model is read at the last token of an answer (`score`), a value function at all.
    """

    def __init__(self, backbone: Transformer):
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.dim, 1)

    def forward(
        self, ids: Ids, *, positions: Ids | None = None, attend: Attend = causal, since: int = 0,
    ) -> Float[Tensor, "batch wanted"]:  # fmt: skip
        """Return the number at every position from `since` on; see `Transformer` for the rest."""
        hidden = self.backbone.hidden(ids, positions=positions, attend=attend, since=since)
        numbers = self.head(hidden)[..., 0]
        return numbers if numbers.dtype == torch.float64 else numbers.float()

    def score(self, ids: Ids, lengths: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the raw score of each row, read at its last real token.

        Rows are prompts with answers, padded on the right with anything. Their `lengths` are
        given and not found by looking for a padding id, which may be a real token too.
        """
        assert 1 <= lengths.min() <= lengths.max() <= ids.shape[1], f"lengths {lengths.tolist()}"
        # Padding stands on the right, where causal attention never looks.
        return self(ids).gather(1, lengths[:, None] - 1)[:, 0]


def scalar_model(model: Transformer, *, seed: int | None = None) -> ScalarModel:
    """Return a scalar model that starts from a copy of `model`, whose output layer is not used.

    A seed draws the head from a normal with standard deviation 1 / sqrt(dim + 1), as is common;
    the paper does not say. Without one the head is zero, and so is every score.
    """
    # A copy keeps the flags: that of a frozen reward model would be a value function that never
    # learns, and no error would say so.
    scalar = ScalarModel(copy.deepcopy(model)).requires_grad_(True)
    scalar.backbone.output.weight.requires_grad_(False)
    with torch.no_grad():
        nn.init.zeros_(scalar.head.weight)
        nn.init.zeros_(scalar.head.bias)
        if seed is not None:
            noise = torch.randn(1, model.config.dim, generator=rng.generator(seed, "scalar head"))
            scalar.head.weight.copy_(noise * (model.config.dim + 1) ** -0.5)
    return scalar.to(model.tok_embeddings.weight)
