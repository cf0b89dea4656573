"""A loss and its gradient in one tensor, for checks: a right value can hide a wrong gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from llama2_lib.teaching.check import CheckFailed


def value_and_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the loss at a point, and behind it the gradient there, as one vector.

    Raises:
        CheckFailed: No single number came back, or it carries no gradient.
    """
    leaf = at.detach().clone().requires_grad_()
    value = loss(leaf)
    if not isinstance(value, Tensor) or value.dim() > 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CheckFailed(f"one number must come back, a tensor without axes; got {shape}.")
    if not value.requires_grad:
        raise CheckFailed(
            "the loss carries no gradient, so nothing would be learned; compute it from the "
            "tensors that are given, without .item(), .detach() or no_grad."
        )
    (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return torch.cat([value.detach().reshape(1), gradient.flatten()])
