"""What a training step of a Llama needs on each of several GPUs, before anything is allocated.

Weights, gradients and AdamW's two moments are divided among the GPUs (FSDP, ZeRO stage 3); the
matrices of the block at work are gathered whole; what the backward pass reads again, the
activations, belongs to each GPU's own rows. The counts follow `model.transformer` line by line, and
`tests/test_memory.py` holds them against the bytes that PyTorch keeps.
"""

from dataclasses import dataclass

from llama2_lib.model.config import ModelConfig

FP32, BF16 = 4, 2
FLOPS, UTILISATION = 312e12, 0.4
"""Peak a second of the paper's A100 in bf16, and the share of it that is reached."""
BANDWIDTH = 25e9
"""Bytes a second that a GPU receives on the paper's production cluster of 200 Gb/s (2.2.1)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one GPU, and seconds of a step."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """Matrices in bf16 of the two largest units that are whole at once: one at work, one coming."""
    activations: int
    logits: int
    compute_seconds: float
    transfer_seconds: float
    """Gathering twice and dividing gradients once; most of it is hidden behind the computing."""

    @property
    def total(self) -> int:
        """All bytes; the allocator and the libraries want about a tenth more."""
        parts = (self.weights, self.gradients, self.optimizer, self.gathered)
        return sum(parts) + self.activations + self.logits


def block_activations(c: ModelConfig, precision: str = "bf16") -> int:
    """Return the bytes that the backward pass of one block keeps of one token.

    In fp32: three tensors of width `dim` at either norm, queries and what attention returns, keys
    and values, four of the feed-forward width. Under autocast the norms keep two in fp32, and every
    product a bf16 copy of its input of its own: three for q, k and v, two for w1 and w3.
    """
    kv, f = c.n_kv_heads * c.head_dim, c.hidden_dim
    sums = FP32 * (c.n_heads + 2)  # of the softmax, and the size at either norm
    if precision == "fp32":
        return FP32 * (8 * c.dim + 2 * kv + 4 * f) + sums
    return FP32 * 4 * c.dim + BF16 * (7 * c.dim + 2 * kv + 4 * f) + sums


def end_activations(c: ModelConfig, precision: str = "bf16") -> int:
    """Return the bytes of one token behind the blocks: the last norm, and the logits in fp32."""
    norm = 3 * FP32 * c.dim if precision == "fp32" else (2 * FP32 + BF16) * c.dim
    return norm + FP32 + FP32 * c.vocab_size


def plan(
    c: ModelConfig, *, gpus: int = 1, tokens: int = 4096, recompute: bool = True,
    precision: str = "bf16",
) -> Plan:  # fmt: skip
    """Return what a step with `tokens` tokens on each of `gpus` GPUs needs.

    `recompute` keeps the input of every block alone and computes the block again (activation
    checkpointing), a third more operations.
    """
    if min(gpus, tokens) < 1:
        raise ValueError(f"gpus and tokens must be at least 1; got {gpus} and {tokens}.")
    share = -(-c.n_parameters // gpus)
    block = (c.n_parameters - (2 * c.vocab_size + 1) * c.dim) // c.n_layers
    units = sorted((block, block, c.vocab_size * c.dim, c.vocab_size * c.dim))[-2:]
    one = block_activations(c, precision)
    kept = c.n_layers * FP32 * c.dim + one if recompute else c.n_layers * one
    operations = c.flops_per_token(c.max_seq_len) * tokens * (4 / 3 if recompute else 1)
    return Plan(
        weights=FP32 * share, gradients=FP32 * share, optimizer=2 * FP32 * share,
        gathered=BF16 * sum(units) if gpus > 1 or precision == "bf16" else 0,
        activations=tokens * kept, logits=tokens * end_activations(c, precision),
        compute_seconds=operations / (FLOPS * UTILISATION),
        transfer_seconds=3 * BF16 * c.n_parameters / BANDWIDTH if gpus > 1 else 0.0,
    )  # fmt: skip


def lines(c: ModelConfig, made: Plan, gpus: int) -> list[str]:
    """Return a plan as text, in units of 10^9 bytes."""
    rows = {
        "weights, fp32, divided": made.weights, "gradients, divided": made.gradients,
        "AdamW's moments, divided": made.optimizer, "matrices gathered, bf16": made.gathered,
        "activations": made.activations, "logits": made.logits, "together": made.total,
    }  # fmt: skip
    cache = c.kv_cache_bytes(c.max_seq_len)
    return [
        f"{c.n_parameters:,} weights on {gpus} GPU{'s' * (gpus > 1)}, on each:",
        *(f"  {name:26s}{size / 1e9:9.2f} GB" for name, size in rows.items()),
        f"a step: {made.compute_seconds:.2f} s of computing, {made.transfer_seconds:.2f} s of "
        "transfers beside it",
        f"to generate, whole: {BF16 * c.n_parameters / 1e9:.2f} GB in bf16, and {cache / 1e9:.3f} "
        f"GB of keys and values for each text of {c.max_seq_len} tokens",
    ]
