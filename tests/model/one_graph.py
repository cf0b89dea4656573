"""Compile a model as one graph, in a process where no checker of shapes wraps its functions.

The compiler's front end is asked alone (`backend="eager"`): it needs no C++ compiler and no GPU,
and `fullgraph=True` makes every break of the graph an error.
"""

import warnings
from functools import partial

import torch

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise, masked
from llama2_lib.objectives.language import next_token_loss
from llama2_lib.training.batches import isolate

warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
one_graph = partial(torch.compile, backend="eager", fullgraph=True)
SHAPE = ModelConfig(vocab_size=53, dim=48, n_layers=2, n_heads=6, n_kv_heads=2, max_seq_len=64)


def model() -> Transformer:
    made = initialise(Transformer(SHAPE), 0).double()
    made.output.weight.data.mul_(50)
    return made


def tokens(*shape):
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(0))


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def a_forward_pass():
    plain, ids = model(), tokens(3, 17)
    same(one_graph(plain)(ids), plain(ids))


def packed_documents():
    plain, ids = model(), tokens(2, 18)
    positions, visible = isolate(torch.tensor([[0] * 5 + [1] * 6 + [2] * 7, [4] * 9 + [7] * 9]))
    options = {"positions": positions, "attend": masked(visible)}
    alone = plain(ids, **options)
    same(one_graph(plain)(ids, **options), alone)
    assert (alone - plain(ids)).abs().max() > 1e-2, "isolation changed nothing: vacuous"


def the_loss_and_its_gradient():
    gradients, ids = [], tokens(4, 21)
    for wrapped in (one_graph, lambda function: function):
        trained = model()
        wrapped(lambda ids, it=trained: next_token_loss(it(ids[:, :-1]), ids).total)(ids).backward()
        gradients.append([weight.grad for weight in trained.parameters()])
    same(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def a_look_at_a_value():
    plain = model()
    looks = one_graph(lambda ids: plain(ids) if int(plain(ids).argmax()) else None)
    try:
        looks(tokens(2, 5))
    except RuntimeError:
        return
    raise AssertionError("a break of the graph must be an error")


for check in (a_forward_pass, packed_documents, the_loss_and_its_gradient, a_look_at_a_value):
    check()
    torch.compiler.reset()
    print(check.__name__)
