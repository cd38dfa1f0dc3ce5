"""Predictions by transformers, in this process: head outputs in token-budget batches, label scores,
generated text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.config.study import Precision
from medray.engines import scoring
from medray.engines.base import check_continuations, sampling_of, tokenize
from medray.engines.generation import Generation, RowError
from medray.errors import ConfigError
from medray.models.batch import bf16_width, check_rows, collate
from medray.models.build import BuiltModel
from medray.models.libraries import base_of
from medray.models.precision import arithmetic_of
from medray.types import Chunk, Floats32, Head, Sampling

_MOST_LOGITS = 1 << 26  # numbers at a time: 256 MB
_MOST_EMBEDDINGS = 500  # of one call, that are kept
_LEAST_SHARE = 0.75  # of the longest row of a batch that each other one has


class TransformersEngine:
    def __init__(
        self,
        built: BuiltModel,
        *,
        precision: Precision,
        token_budget: int,
        device: str = "cpu",
        is_sharded: bool = False,
        embeddings: list[Floats32] | None = None,
    ) -> None:
        self.built, self.model = built, built.model
        # Shards are put together inside a call, and some stay: made in inference mode they could
        # not train afterwards.
        self._without_gradients = torch.no_grad if is_sharded else torch.inference_mode
        self.precision, self.token_budget, self.device = (
            precision,
            token_budget,
            torch.device(device),
        )
        self._arithmetic = arithmetic_of(precision, self.device.type)
        self.embeddings = embeddings  # where given, what `logits` adds rows' to: of many, some

    @property
    def tokenizer(self) -> Any:
        return self.built.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        num = len(self._needs_head(per_token=False).labels)
        found = np.zeros((len(inputs), num), dtype=np.float32)
        if self.embeddings is None:
            for batch, outputs in self._outputs(inputs):
                found[batch] = outputs
            return found
        kept: dict[int, Floats32] = {}
        step = -(-len(inputs) // _MOST_EMBEDDINGS)
        for batch, outputs, embeddings in self._embedded(inputs):
            found[batch] = outputs
            kept |= {at: row for at, row in zip(batch, embeddings, strict=True) if at % step == 0}
        self.embeddings.extend(kept[at] for at in sorted(kept))
        return found

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats32]:
        head = self._needs_head(per_token=True)
        found = [np.zeros((0, len(head.labels)), dtype=np.float32) for _ in inputs]
        for batch, outputs in self._outputs(inputs):
            for at, row in zip(batch, outputs, strict=True):
                found[at] = row[: len(inputs[at])]
        return found

    def embedded(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        """The outputs of a head that reads rows, and beside them each row's embedding, which the
        same pass makes."""
        self._needs_head(per_token=False)
        rows: dict[int, Floats32] = {}
        for batch, outputs, embeddings in self._embedded(inputs):
            rows |= dict(zip(batch, np.concatenate([outputs, embeddings], axis=1), strict=True))
        return np.stack([rows[at] for at in range(len(inputs))])

    def _embedded(
        self, inputs: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], Floats32, Floats32]]:
        with watched(self.built) as states:
            for batch, outputs in self._outputs(inputs):
                yield batch, outputs, states.means([len(inputs[at]) for at in batch])

    def _outputs(self, inputs: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Floats32]]:
        """Positions of a batch, and what the head says to it."""
        with self._computing():
            for batch in _batches([len(row) for row in inputs], self.token_budget):
                yield (
                    batch,
                    self.model(**self._collated([inputs[at] for at in batch]))
                    .logits.float()
                    .cpu()
                    .numpy(),
                )

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """All continuations of a prompt in one pass over its tokens, prompts of similar length
        together."""
        self._needs_language_model("scores of continuations")
        check_continuations(prompts, continuations)
        scores = np.zeros((len(prompts), len(continuations)), dtype=np.float32)
        places = scoring.row_length((), continuations) + 1
        most = max(1, _MOST_LOGITS // (places * self.model.config.vocab_size))
        with self._computing():
            method = scoring.method(self.model)
            lengths = [scoring.row_length(prompt, continuations) for prompt in prompts]
            for batch in _batches(
                lengths, self.token_budget, most_rows=most, least_share=_LEAST_SHARE
            ):
                found = method(
                    self.model,
                    [prompts[at] for at in batch],
                    continuations,
                    self.tokenizer.pad_token_id,
                )
                scores[batch] = found.float().cpu().numpy()
        return scores

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        """Prompts decode together as far as the budget goes, and the next one joins when one is
        done. Sampled, each has a seed of its own."""
        generation = self.generation()
        rows = tokenize(self.tokenizer, prompts)
        check_rows(rows)
        return self._generate(generation, rows, sampling)

    def generation(self) -> Generation:
        """Rows that come and go, for requests that arrive at different times."""
        self._needs_language_model("generated text")
        return Generation(self.model, self.tokenizer, self._computing)

    def _generate(
        self, generation: Generation, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        longest_first = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        waiting = [
            generation.row(at, prompts[at], sampling_of(sampling, at)) for at in longest_first
        ]
        while waiting or generation.rows:
            joining = generation.admit(waiting, self.token_budget)
            waiting = waiting[len(joining) :]
            for chunk in generation.join(joining) if joining else generation.step():
                if isinstance(chunk, RowError):
                    raise chunk.reason
                yield chunk

    def _collated(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        check_rows(rows)
        longest = max(map(len, rows))
        width = (
            bf16_width(self.model.config, longest)
            if self.precision == "bf16" and self.device.type == "cpu"
            else longest
        )
        return {
            name: tensor.to(self.device)
            for name, tensor in collate(rows, self.tokenizer.pad_token_id, width=width).items()
        }

    def _needs_head(self, *, per_token: bool) -> Head:
        head = self.built.head
        if head is None:
            raise ConfigError(
                f"{self.built.base.source}: gives no head outputs: it was built without a head, "
                "as a language model"
            )
        if head.per_token != per_token:
            wanted, made = ("tokens", "rows") if per_token else ("rows", "tokens")
            raise ConfigError(
                f"{self.built.base.source}: gives no outputs of {wanted}: it was built with a "
                f"head that reads {made}"
            )
        return head

    def _needs_language_model(self, what: str) -> None:
        if self.built.head is not None:
            raise ConfigError(
                f"{self.built.base.source}: gives no {what}: it was built with a head"
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Evaluation mode for the time of a call: the loop trains the same model before and
        after."""
        was_training = self.model.training
        if was_training:  # it goes through every module, which a single token would feel
            self.model.eval()
        try:
            with self._without_gradients(), self._arithmetic():
                yield
        finally:
            if was_training:
                self.model.train()


def _batches(
    lengths: Sequence[int],
    token_budget: int,
    *,
    most_rows: int | None = None,
    least_share: float = 0.0,
) -> Iterator[list[int]]:
    """Positions, longest first, so that rows x longest stays within the budget; one row always
    goes."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[batch[0]] if batch else 0
        full = (
            (len(batch) + 1) * longest > token_budget
            or len(batch) == most_rows
            or lengths[at] < least_share * longest
        )
        if batch and full:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


_DEPTH = 2 / 3  # of the layers


class States:
    """What the watched layer held when it computed last."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def hold(self, module: Any, inputs: Any, output: Any) -> None:
        self._last = (
            output if isinstance(output, Tensor) else output[0]
        )  # of some families with their attention

    def means(self, lengths: Sequence[int]) -> npt.NDArray[np.float32]:
        """Over the tokens of each row, which stand before its padding. Of no numbers where a model
        of another make holds no such states."""
        states, self._last = self._last, None
        if (
            states is None
            or states.ndim != 3
            or len(states) != len(lengths)
            or states.shape[1] < max(lengths)
        ):
            return np.zeros((len(lengths), 0), dtype=np.float32)
        mask = (
            torch.arange(states.shape[1], device=states.device)[None]
            < torch.tensor(lengths, device=states.device)[:, None]
        )
        found: npt.NDArray[np.float32] = (
            ((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
        )
        return found


@contextmanager
def watched(built: BuiltModel) -> Iterator[States]:
    """Inside, each forward pass leaves the states of its tokens there."""
    states = States()
    layers = base_of(built.model).get_submodule(built.family.layers_path)
    hook = layers[max(1, round(_DEPTH * len(layers))) - 1].register_forward_hook(states.hold)
    try:
        yield states
    finally:
        hook.remove()
