"""Compare a learner's values with the right ones, and name the mistake that explains them."""

from collections.abc import Callable, Mapping

import torch

from llama2_lib.teaching.check import CheckFailed


def diagnose(
    actual: object,
    expected: torch.Tensor,
    mistakes: Mapping[str, Callable[[], torch.Tensor]],
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Return if the values agree; else say which known mistake gives the same values.

    Args:
        actual: What the learner's code returned.
        expected: What it must return.
        mistakes: What people get wrong, and a function that computes what it leads to.
        rtol: Allowed relative difference.
        atol: Allowed absolute difference.

    Raises:
        CheckFailed: Kind, shape or values differ.
    """
    if not isinstance(actual, torch.Tensor):
        raise CheckFailed(f"a tensor must come back; got {type(actual).__name__}.")
    if actual.shape != expected.shape:
        raise CheckFailed(f"expected shape {tuple(expected.shape)}; got {tuple(actual.shape)}.")
    actual = actual.detach().to(expected.dtype)

    def same(other: torch.Tensor) -> bool:
        return other.shape == actual.shape and torch.allclose(
            actual, other.to(actual.dtype), rtol=rtol, atol=atol, equal_nan=True
        )

    if same(expected):
        return
    for mistake, wrong in mistakes.items():
        if same(wrong().detach()):
            raise CheckFailed(f"the shape is right, the values are not: it looks as if {mistake}.")
    worst = (actual - expected).abs().max().item()
    raise CheckFailed(f"the values differ by up to {worst:.2g}, like no mistake known here.")
