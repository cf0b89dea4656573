"""`transformers`' Llama with the weights of a model of ours."""

from typing import Any

from torch import nn

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import to_hugging_face


def hugging_face_twin(model: Transformer, attention: str = "sdpa") -> nn.Module:
    """Return `transformers`' Llama with the same weights.

    Args:
        model: The original.
        attention: `sdpa`, PyTorch's fused attention as in this library, or `eager`, matrix
            products and a softmax.

    Raises:
        ValueError: `transformers` is not installed.
    """
    twin = _transformers().LlamaForCausalLM(_config(model.config))
    twin.set_attn_implementation(attention)
    twin.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    return nn.Module.to(twin, model.tok_embeddings.weight.device).eval()


def scalar_twin(model: ScalarModel) -> nn.Module:
    """Return `transformers`' Llama with a scalar head and the same weights; it has no bias.

    Raises:
        ValueError: `transformers` is not installed, or the head has a bias.
    """
    if bool(model.head.bias.detach().any()):
        raise ValueError("the other side's scalar heads have no bias; this one's must be 0.")
    config = _config(model.config)
    config.num_labels = 1
    twin = _transformers().LlamaForSequenceClassification(config)
    twin.set_attn_implementation("sdpa")
    weights = to_hugging_face(model.backbone.state_dict(), model.config)
    del weights["lm_head.weight"]  # logits are what this head takes the place of
    weights["score.weight"] = model.head.weight
    twin.load_state_dict(weights)
    return nn.Module.to(twin, model.head.weight.device).eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "the comparison needs transformers, which is not installed; `make test` installs it, "
            "or pip install transformers."
        ) from None
    return transformers


def _config(c: ModelConfig) -> Any:
    return _transformers().LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        intermediate_size=c.hidden_dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        max_position_embeddings=c.max_seq_len,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
