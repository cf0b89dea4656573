"""Our models in EleutherAI's harness, `lm_eval`, which only this file needs (extra `lm-eval`).

`lm_eval.simple_evaluate(model=HarnessModel(model, tokenizer), tasks=[...])`
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM  # type: ignore[missing-import]
from lm_eval.utils import get_rolling_token_windows  # type: ignore[missing-import]

from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer


class HarnessModel(TemplateLM):
    """A language model as the harness asks it; `TemplateLM` pairs texts. A text begins with BOS."""

    eot_token_id = property(lambda self: self.text.eos_id)
    prefix_token_id = property(lambda self: self.text.bos_id)

    def __init__(self, model: Transformer, tokenizer: Tokenizer):
        super().__init__()
        self.model, self.text, self.context = model, tokenizer, model.config.max_seq_len

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return ids, behind BOS unless it is not wanted."""
        return self.text.encode(string, bos=add_special_tokens is not False)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return [self._score(before, ids) for _, before, ids in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Return nats of whole texts; long ones are read in windows that overlap."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        cut = [get_rolling_token_windows(i, self.prefix_token_id, self.context, 1) for i in texts]
        return [sum(self._score(b[: len(b) - len(i) + 1], i)[0] for b, i in text) for text in cut]

    @torch.no_grad()
    def _score(self, before: Sequence[int], ids: Sequence[int]) -> tuple[float, bool]:
        """Return the log-probability of `ids` in nats, and whether greedy decoding writes them."""
        if not 1 <= len(ids) <= self.context:
            raise ValueError(f"1 to {self.context} tokens can be scored; got {len(ids)}.")
        row = torch.tensor([*before, *ids][-self.context - 1 :]).to(self.model.output.weight.device)
        logprobs = self.model(row[None, :-1])[0, -len(ids) :].log_softmax(-1)
        of_ids = logprobs.gather(1, row[-len(ids) :, None])
        return float(of_ids.sum()), bool((of_ids[:, 0] == logprobs.amax(-1)).all())

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Return what follows each context, up to EOS or the first of the texts in `until`."""
        return [self._write(*request.args) for request in requests]

    def _write(self, before: str, options: dict[str, Any]) -> str:
        most = min(int(options.get("max_gen_toks", 256)), self.context - 1)
        ids = self.tok_encode(before)[most - self.context :]  # its end, where it does not fit
        t = options.get("temperature", 0.0) if options.get("do_sample") else 0.0
        stops = {self.text.eos_id}
        [done] = generate(self.model, [ids], max_new_tokens=most, temperature=t, stop_ids=stops)
        text = self.text.decode(done.ids)
        return min((text.split(stop)[0] for stop in options["until"]), key=len, default=text)
