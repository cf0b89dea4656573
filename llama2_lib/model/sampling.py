"""Choosing the next token from logits: greedy, by temperature, from a nucleus."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nucleus(
    probabilities: Float[Tensor, "batch vocab"], top_p: float
) -> Float[Tensor, "batch vocab"]:
    """Keep the smallest set of tokens whose mass reaches `top_p`, and renormalise.

    The token that crosses the threshold stays, so at least one always does.
    """
    if top_p >= 1.0:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def sample(
    logits: Float[Tensor, "batch vocab"],
    uniform: Float[Tensor, " batch"],
    temperature: float,
    top_p: float,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return one id a row and its log-probability under the distribution sampled from.

    Sampling inverts the cumulative distribution at `uniform`, so a row's draw depends on that
    row alone. At temperature 0 the largest logit is taken, and its log-probability is the
    model's own, at temperature 1.
    """
    if temperature == 0.0:
        logprob, best = logits.log_softmax(dim=-1).max(dim=-1)
        return best, logprob
    probabilities = nucleus((logits / temperature).softmax(dim=-1), top_p)
    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniform.double() * cumulative[:, -1]
    ids = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    # A uniform draw just below 1 may round up to the full mass: step back to a token that has
    # some probability.
    last = cumulative.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(dim=-1)
    ids = torch.minimum(ids, last)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()
