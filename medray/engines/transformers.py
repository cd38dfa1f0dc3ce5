"""The engine that runs transformers in this process: head outputs in batches, scores of labels,
generated text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.config.trial import Precision
from medray.engines import scoring
from medray.engines.base import (
    check_continuations,
    sampling_of,
    tail_length,
    tokenize,
    tree_length,
)
from medray.engines.generation import Generation, RowError
from medray.errors import ConfigError
from medray.models.batch import bf16_width, check_rows, collate
from medray.models.build import BuiltModel
from medray.models.libraries import base_of
from medray.models.precision import arithmetic_of
from medray.types import Branch, Chunk, Floats32, Head, Sampling

MOST_LOGITS = 1 << 26  # numbers per batch: 256 MB
MOST_EMBEDDINGS = 500  # per call
DEPTH = 2 / 3  # of the layers, where embeddings are taken
_LEAST_SHARE = 0.75  # length of a row in a batch, as a share of the longest one


class TransformersEngine:
    def __init__(
        self,
        model: BuiltModel,
        *,
        precision: Precision,
        token_budget: int,
        device: str = "cpu",
        is_sharded: bool = False,
        embeddings: list[Floats32] | None = None,
    ) -> None:
        self.model, self.network = model, model.network
        # A call gathers shards, and some stay. Those from inference mode could not train
        # afterwards.
        self._without_gradients = torch.no_grad if is_sharded else torch.inference_mode
        self.precision, self.token_budget, self.device = (
            precision,
            token_budget,
            torch.device(device),
        )
        self._arithmetic = arithmetic_of(precision, self.device.type)
        self.embeddings = embeddings  # `logits` adds embeddings of rows, at most 500 per call

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        num = len(self._needs_head(per_token=False).labels)
        logits = np.zeros((len(inputs), num), dtype=np.float32)
        if self.embeddings is None:
            for batch, outputs in self._outputs(inputs):
                logits[batch] = outputs
            return logits
        sample: dict[int, Floats32] = {}
        step = -(-len(inputs) // MOST_EMBEDDINGS)
        for batch, outputs, embeddings in self._batches_with_embeddings(inputs):
            logits[batch] = outputs
            sample |= {at: row for at, row in zip(batch, embeddings, strict=True) if at % step == 0}
        self.embeddings.extend(sample[at] for at in sorted(sample))
        return logits

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats32]:
        head = self._needs_head(per_token=True)
        logits = [np.zeros((0, len(head.labels)), dtype=np.float32) for _ in inputs]
        for batch, outputs in self._outputs(inputs):
            for at, row in zip(batch, outputs, strict=True):
                logits[at] = row[: len(inputs[at])]
        return logits

    def logits_and_embeddings(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        """Return head outputs and embeddings side by side, a row per input, from the same pass."""
        self._needs_head(per_token=False)
        rows: dict[int, Floats32] = {}
        for batch, outputs, embeddings in self._batches_with_embeddings(inputs):
            rows |= dict(zip(batch, np.concatenate([outputs, embeddings], axis=1), strict=True))
        return np.stack([rows[at] for at in range(len(inputs))])

    def mean_states(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        """Return the mean state of the last layer, a row per input."""
        self._needs_head(per_token=False)
        rows: dict[int, Floats32] = {}
        for batch, _, means in self._batches_with_embeddings(inputs, depth=1.0):
            rows |= dict(zip(batch, means, strict=True))
        return np.stack([rows[at] for at in range(len(inputs))])

    def _batches_with_embeddings(
        self, inputs: Sequence[Sequence[int]], *, depth: float = DEPTH
    ) -> Iterator[tuple[list[int], Floats32, Floats32]]:
        with watch(self.model, depth) as states:
            for batch, outputs in self._outputs(inputs):
                yield batch, outputs, states.means([len(inputs[at]) for at in batch])

    def _outputs(self, inputs: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Floats32]]:
        """Yield the positions of each batch, and the head's outputs."""
        with self._computing():
            for batch in _batches([len(row) for row in inputs], self.token_budget):
                yield (
                    batch,
                    self.network(**self._collate([inputs[at] for at in batch]))
                    .logits.float()
                    .cpu()
                    .numpy(),
                )

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Score all continuations of a prompt in one pass, with prompts of similar length
        together."""
        self._needs_language_model("scores of continuations")
        check_continuations(prompts, continuations)
        scores = np.zeros((len(prompts), len(continuations)), dtype=np.float32)
        places = tail_length(continuations) + 1
        most = max(1, MOST_LOGITS // (places * self.network.config.vocab_size))
        with self._computing():
            method = scoring.method(self.network)
            lengths = [len(prompt) + tail_length(continuations) for prompt in prompts]
            for batch in _batches(
                lengths, self.token_budget, most_rows=most, least_share=_LEAST_SHARE
            ):
                batch_scores = method(
                    self.network,
                    [prompts[at] for at in batch],
                    continuations,
                    self.tokenizer.pad_token_id,
                )
                scores[batch] = batch_scores.float().cpu().numpy()
        return scores

    def score_branches(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]
    ) -> list[list[Floats32]]:
        """Score all branches of a prompt in one pass, with prompts of similar length together."""
        self._needs_language_model("scores of continuations")
        for own in branches:
            for branch in own:
                check_continuations(prompts, branch.continuations)
        scores: list[list[Floats32]] = [[] for _ in prompts]
        lengths = [tree_length(prompt, own) for prompt, own in zip(prompts, branches, strict=True)]
        num_places = max(
            (length - len(prompt) for length, prompt in zip(lengths, prompts, strict=True)),
            default=0,
        )
        most = max(1, MOST_LOGITS // ((num_places + 1) * self.network.config.vocab_size))
        with self._computing():
            for batch in _batches(
                lengths, self.token_budget, most_rows=most, least_share=_LEAST_SHARE
            ):
                batch_scores = scoring.branch_scores(
                    self.network,
                    [prompts[at] for at in batch],
                    [branches[at] for at in batch],
                    self.tokenizer.pad_token_id,
                )
                for at, of_prompt in zip(batch, batch_scores, strict=True):
                    scores[at] = [values.float().cpu().numpy() for values in of_prompt]
        return scores

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        """Generate prompts together within the token budget; the next one joins when one ends.

        With a seed, each prompt has its own.
        """
        generation = self.generation()
        rows = tokenize(self.tokenizer, prompts)
        check_rows(rows)
        return self._generate(generation, rows, sampling)

    def generation(self) -> Generation:
        """Return a generation that rows join and leave, for requests at different times."""
        self._needs_language_model("generated text")
        return Generation(self.network, self.tokenizer, self._computing)

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

    def _collate(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        check_rows(rows)
        longest = max(map(len, rows))
        width = (
            bf16_width(self.network.config, longest)
            if self.precision == "bf16" and self.device.type == "cpu"
            else longest
        )
        return {
            name: tensor.to(self.device)
            for name, tensor in collate(rows, self.tokenizer.pad_token_id, width=width).items()
        }

    def _needs_head(self, *, per_token: bool) -> Head:
        head = self.model.head
        if head is None:
            raise ConfigError(
                f"{self.model.base.source}: gives no head outputs; it was built as a language "
                "model, "
                "without a head"
            )
        if head.per_token != per_token:
            request, head_input = ("tokens", "rows") if per_token else ("rows", "tokens")
            raise ConfigError(
                f"{self.model.base.source}: gives no outputs of {request}; it was built with a "
                "head "
                f"that reads {head_input}"
            )
        return head

    def _needs_language_model(self, what: str) -> None:
        if self.model.head is not None:
            raise ConfigError(
                f"{self.model.base.source}: gives no {what}; it was built with a head"
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Use evaluation mode inside a block, since the loop trains the same model."""
        was_training = self.network.training
        if was_training:  # it visits every module, which would slow a single token down
            self.network.eval()
        try:
            with self._without_gradients(), self._arithmetic():
                yield
        finally:
            if was_training:
                self.network.train()


def _batches(
    lengths: Sequence[int],
    token_budget: int,
    *,
    most_rows: int | None = None,
    least_share: float = 0.0,
) -> Iterator[list[int]]:
    """Yield positions in batches of at most `token_budget` tokens, padding included, longest first.

    A single row may exceed the budget.
    """
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


class States:
    """The outputs of a layer in its last forward pass."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def store(self, module: Any, inputs: Any, output: Any) -> None:
        self._last = (
            output if isinstance(output, Tensor) else output[0]
        )  # some families return their attention too

    def means(self, lengths: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the mean state per row, without padding. The means are empty where a model has no
        such states."""
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
        means: npt.NDArray[np.float32] = (
            ((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
        )
        return means


@contextmanager
def watch(model: BuiltModel, depth: float = DEPTH) -> Iterator[States]:
    """Store the states of the layer at this depth, for each forward pass in a block."""
    states = States()
    layers = base_of(model.network).get_submodule(model.family.layers_path)
    hook = layers[max(1, round(depth * len(layers))) - 1].register_forward_hook(states.store)
    try:
        yield states
    finally:
        hook.remove()
