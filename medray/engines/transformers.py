"""Predictions by transformers, in this process: head outputs in token-budget batches, label scores, generated text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from medray.engines import _scoring
from medray.errors import ConfigError, DataError
from medray.generation import Chunk, Sampling
from medray.models.batch import collate
from medray.models.build import Built
from medray.tasks.base import Head

Floats = npt.NDArray[np.float32]
_MOST_LOGITS = 1 << 26  # numbers at a time: 256 MB
_LEAST_SHARE = 0.75  # of the longest row of a batch that each other one has
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    def __init__(
        self, built: Built, *, precision: Literal["fp32", "bf16", "fp16"], token_budget: int, device: str = "cpu", is_sharded: bool = False
    ) -> None:
        self.built, self.model = built, built.model
        # Shards are put together inside a call, and some stay: made in inference mode they could not train afterwards.
        self._without_gradients = torch.no_grad if is_sharded else torch.inference_mode
        self.precision, self.token_budget, self.device = precision, token_budget, torch.device(device)

    @property
    def tokenizer(self) -> Any:
        return self.built.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        head = self._needs_head(per_token=False)
        found = np.zeros((len(inputs), len(head.labels)), dtype=np.float32)
        for batch, outputs in self._outputs(inputs):
            found[batch] = outputs
        return found

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats]:
        head = self._needs_head(per_token=True)
        found = [np.zeros((0, len(head.labels)), dtype=np.float32) for _ in inputs]
        for batch, outputs in self._outputs(inputs):
            for at, row in zip(batch, outputs, strict=True):
                found[at] = row[: len(inputs[at])]
        return found

    def _outputs(self, inputs: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Floats]]:
        """Positions of a batch, and what the head says to it."""
        with self._computing():
            for batch in _batches([len(row) for row in inputs], self.token_budget):
                yield batch, self.model(**self._collated([inputs[at] for at in batch])).logits.float().cpu().numpy()

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """All continuations of a prompt in one pass over its tokens, prompts of similar length together."""
        self._needs_language_model("scores of continuations")
        if not all(map(len, prompts)) or not continuations or not all(map(len, continuations)):
            raise DataError("a prompt and its continuations need at least one token each")
        scores = np.zeros((len(prompts), len(continuations)), dtype=np.float32)
        places = _scoring.row_length((), continuations) + 1
        most = max(1, _MOST_LOGITS // (places * self.model.config.vocab_size))
        with self._computing():
            method = _scoring.method(self.model)
            lengths = [_scoring.row_length(prompt, continuations) for prompt in prompts]
            for batch in _batches(lengths, self.token_budget, most_rows=most, least_share=_LEAST_SHARE):
                found = method(self.model, [prompts[at] for at in batch], continuations, self.tokenizer.pad_token_id)
                scores[batch] = found.float().cpu().numpy()
        return scores

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        """One chunk a prompt, as its batch is done: transformers returns whole texts."""
        self._needs_language_model("generated text")
        rows = [
            list(self.tokenizer(prompt, split_special_tokens=True)["input_ids"]) if isinstance(prompt, str) else list(prompt)
            for prompt in prompts
        ]
        return self._generate(rows, sampling)

    def _generate(self, rows: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        ends = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        # A base's own generation_config must not decide: what is not set here is greedy or plain sampling.
        chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        for number, batch in enumerate(_batches([len(row) + sampling.max_tokens for row in rows], self.token_budget)):
            inputs = self._collated([rows[at] for at in batch], side=self.built.family.padding_side_generate)
            with self._computing(), _seeded(sampling.seed, number):
                made = self.model.generate(
                    **inputs,
                    **chosen,
                    max_new_tokens=sampling.max_tokens,
                    num_beams=1,
                    repetition_penalty=1.0,
                    use_cache=True,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=self.tokenizer.pad_token_id,
                    stopping_criteria=self._stopping(sampling.stop, inputs["input_ids"].shape[1]),
                )[:, inputs["input_ids"].shape[1] :].tolist()
            for at, ids in zip(batch, made, strict=True):
                yield self._chunk(at, ids, ends, sampling)

    def _stopping(self, stop: Sequence[str], start: int) -> Any:
        """transformers' own stop_strings reads the whole vocabulary first, and fails on tokenizers that drop spaces."""

        def stopped(ids: Tensor, scores: Tensor, **others: Any) -> Tensor:
            texts = self.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
            return torch.tensor([any(word in text for word in stop) for text in texts], device=ids.device)

        return StoppingCriteriaList([stopped] if stop else [])

    def _chunk(self, index: int, ids: list[int], ends: set[int], sampling: Sampling) -> Chunk:
        length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        stops = [text.find(stop) for stop in sampling.stop if stop in text]
        finish = "stop" if stops or length < sampling.max_tokens else "length"
        return Chunk(index, text[: min(stops)] if stops else text, finish)

    def _collated(self, rows: Sequence[Sequence[int]], side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
        empty = [number for number, row in enumerate(rows) if not len(row)]
        if empty:
            raise DataError(f"{len(empty)} of {len(rows)} inputs have no tokens: an empty text cannot be answered")
        return {name: tensor.to(self.device) for name, tensor in collate(rows, self.tokenizer.pad_token_id, side=side).items()}

    def _needs_head(self, *, per_token: bool) -> Head:
        head = self.built.head
        if head is None:
            raise ConfigError(f"{self.built.base.source}: gives no head outputs: it was built without a head, as a language model")
        if head.per_token != per_token:
            wanted, made = ("tokens", "rows") if per_token else ("rows", "tokens")
            raise ConfigError(f"{self.built.base.source}: gives no outputs of {wanted}: it was built with a head that reads {made}")
        return head

    def _needs_language_model(self, what: str) -> None:
        if self.built.head is not None:
            raise ConfigError(f"{self.built.base.source}: gives no {what}: it was built with a head")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Evaluation mode for the time of a call: the loop trains the same model before and after."""
        was_training = self.model.training
        self.model.eval()
        arithmetic = nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, dtype=_TYPES[self.precision])
        try:
            with self._without_gradients(), arithmetic:
                yield
        finally:
            self.model.train(was_training)


@contextmanager
def _seeded(seed: int | None, number: int) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed + number)
        yield


def _batches(lengths: Sequence[int], token_budget: int, *, most_rows: int | None = None, least_share: float = 0.0) -> Iterator[list[int]]:
    """Positions, longest first, so that rows x longest stays within the budget; one row always goes."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[batch[0]] if batch else 0
        full = (len(batch) + 1) * longest > token_budget or len(batch) == most_rows or lengths[at] < least_share * longest
        if batch and full:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
