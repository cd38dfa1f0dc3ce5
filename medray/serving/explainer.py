"""Explains the answers of a replica's releases, one text at a time. Imports no Ray.

Its passes take turns with batches of predictions in the thread that computes."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from medray.client.answers import Explanation
from medray.engines.transformers import TransformersEngine
from medray.errors import DataError, ServingError
from medray.registry.explanation import LabelError, LongTextError, explain
from medray.registry.loading import LoadedRelease
from medray.serving.chat import ChatModel
from medray.serving.refusals import Refusal
from medray.serving.replica_refusals import refusal_of, wrong_route
from medray.serving.schemas import RETRY_AFTER_S, Limits
from medray.serving.streams import LateError
from medray.serving.text_model import Batcher, TextModel, Turn
from medray.tasks.base.protocol import Explainable
from medray.tasks.base.route import ExplainRequest, ExplainResponse

# A pass with its gradients takes as long as three without, and keeps the outputs of every layer.
_PASS_TOKENS = 512
_BUSY = Refusal(
    429, "overloaded", "another text is being explained; try again later", RETRY_AFTER_S
)
Result = TypeVar("Result")


class Explainer:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        # A model that is served no more takes its engine along.
        self._engines: WeakKeyDictionary[Batcher, TransformersEngine] = WeakKeyDictionary()

    def answer(
        self, model: TextModel | ChatModel, request: ExplainRequest, deadline: float
    ) -> ExplainResponse | Refusal:
        name = model.release.name
        if isinstance(model, ChatModel) or not isinstance(model.task, Explainable):
            return wrong_route(f"{name} has no explanations; name a release of task classification")
        if not self._lock.acquire(blocking=False):
            return _BUSY
        try:
            explanation = self._explain(model, request, deadline)
        except (DataError, LabelError, LongTextError, ServingError) as err:
            return refusal_of(err)
        finally:
            self._lock.release()
        return ExplainResponse.of(explanation, name, model.release.version)

    def _explain(self, model: TextModel, request: ExplainRequest, deadline: float) -> Explanation:
        turn = Turn(model.batcher, model.streams, self.limits.tokens, deadline, model.cloud)
        (prediction,) = replace(model.release, engine=turn).predict([request.text])
        return explain(
            model.task,
            self._engine(model),
            prediction,
            request.text,
            request.label,
            most_tokens=self.limits.explanation_tokens,
            run=_Turns(model.batcher, deadline),
        )

    def _engine(self, model: TextModel) -> TransformersEngine:
        if model.batcher not in self._engines:
            precise = _with_gradients(model.release).in_precision("fp32", token_budget=_PASS_TOKENS)
            assert isinstance(precise.engine, TransformersEngine)
            self._engines[model.batcher] = precise.engine
        return self._engines[model.batcher]


def _with_gradients(release: LoadedRelease) -> LoadedRelease:
    """Return the release itself if its weights are in fp32, or load it again. Packed layers have no
    gradients, and those in 16 bits are rounded."""
    if release.precision == "fp32":
        return release
    assert release.release is not None  # a service loads releases alone
    again = partial(release.release.load, precision="fp32", device=release.device)
    with ThreadPoolExecutor(1, "load") as loader:  # its OpenMP workers end with it
        return loader.submit(again).result()


@dataclass(frozen=True)
class _Turns:
    """Calls each pass in the thread that computes, until a deadline."""

    batcher: Batcher
    deadline: float

    def __call__(self, step: Callable[[], Result], /) -> Result:
        future = self.batcher.thread.submit(step)
        try:
            return future.result(timeout=max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            raise LateError("the explanation was not ready in time") from None
