"""Predictions by transformers, in this process: head outputs in token-budget batches, label scores, generated text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from medray.engines.base import Chunk, Sampling
from medray.errors import ConfigError
from medray.models.batch import collate
from medray.models.build import Built

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    def __init__(self, built: Built, *, precision: Literal["fp32", "bf16", "fp16"], token_budget: int, device: str = "cpu") -> None:
        self.built, self.model = built, built.model
        self.precision, self.token_budget, self.device = precision, token_budget, device

    @property
    def tokenizer(self) -> Any:
        return self.built.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        self._needs(head=True, what="head outputs")
        found: dict[int, npt.NDArray[np.float32]] = {}
        with self._computing():
            for batch in _batches([len(row) for row in inputs], self.token_budget):
                outputs = self._forward([inputs[at] for at in batch])
                found.update(zip(batch, outputs.logits.float().cpu().numpy(), strict=True))
        return np.stack([found[at] for at in range(len(inputs))])

    def score(self, prompt: str, continuations: Sequence[str]) -> npt.NDArray[np.float32]:
        self._needs(head=False, what="scores of continuations")
        before = list(self.tokenizer(prompt, split_special_tokens=True)["input_ids"])
        after = [self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in continuations]
        if not before or not all(after):
            raise ConfigError("a prompt and its continuations need at least one token each")
        scores = np.zeros(len(after), dtype=np.float32)
        with self._computing():
            for batch in _batches([len(before) + len(ids) for ids in after], self.token_budget):
                logits = self._forward([before + after[at] for at in batch]).logits.float().log_softmax(-1).cpu()
                for row, at in zip(logits, batch, strict=True):
                    places = torch.arange(len(before) - 1, len(before) - 1 + len(after[at]))
                    scores[at] = row[places, torch.tensor(after[at])].sum().item()
        return scores

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[Chunk]:
        self._needs(head=False, what="generated text")
        for index, prompt in enumerate(prompts):
            inputs = self.tokenizer(prompt, return_tensors="pt", split_special_tokens=True, return_token_type_ids=False).to(self.device)
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            with self._computing():
                ids = self.model.generate(
                    **inputs,
                    max_new_tokens=sampling.max_tokens,
                    do_sample=sampling.temperature > 0,
                    temperature=sampling.temperature or None,
                    top_p=sampling.top_p if sampling.temperature else None,
                    pad_token_id=self.tokenizer.pad_token_id,
                )[0, inputs["input_ids"].shape[1] :]
            finish = "length" if len(ids) == sampling.max_tokens and ids[-1] != self.tokenizer.eos_token_id else "stop"
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            ends = [text.find(stop) for stop in sampling.stop if stop in text]
            yield Chunk(index, text[: min(ends)] if ends else text, "stop" if ends else finish)

    def _forward(self, rows: Sequence[Sequence[int]]) -> Any:
        inputs = collate(rows, self.tokenizer.pad_token_id)
        return self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    def _needs(self, *, head: bool, what: str) -> None:
        if (self.built.head is not None) != head:
            raise ConfigError(f"{self.built.base.source}: gives no {what}, it was built {'without' if head else 'with'} a head")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Evaluation mode for the time of a call: the loop trains the same model before and after."""
        was_training = self.model.training
        self.model.eval()
        arithmetic = nullcontext() if self.precision == "fp32" else torch.autocast(self.device, dtype=_TYPES[self.precision])
        try:
            with torch.inference_mode(), arithmetic:
                yield
        finally:
            self.model.train(was_training)


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Positions, longest first, so that rows x longest stays within the budget."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
