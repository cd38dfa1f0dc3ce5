"""The engine that generates text with vLLM in its own processes. A core serves several adapters of
a base model, or one merged model.

Only this file imports vLLM in this process, inside functions, since the import takes seconds and
reads environment variables; vLLM's workers import `lora_cpu`. Prompts are token ids. medray itself
turns tokens into text and applies stop strings, so that both engines give the same texts. Nothing
here knows a task."""

import asyncio
import itertools
import subprocess
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from medray.engines.base import (
    GeneratedText,
    check_continuations,
    end_tokens,
    sampling_of,
    token_logprob,
    tokenize,
)
from medray.engines.vllm.settings import (
    HEAD_SIZES,
    RANKS,
    Settings,
    config_end_tokens,
    guard,
    head_size,
    is_installed,
    set_environment,
    window_of,
)
from medray.errors import ArtifactError, ConfigError, ServingError
from medray.models.batch import check_rows
from medray.models.precision import dtype_name
from medray.types import Branch, Chunk, Sampling

__all__ = [
    "HEAD_SIZES",
    "RANKS",
    "Core",
    "Settings",
    "VllmEngine",
    "head_size",
    "is_installed",
    "window_of",
]
_START_S, _SCORE_S, _END_S = 900.0, 300.0, 10.0
Result = TypeVar("Result")


class Core:
    """The processes of vLLM for one set of weights, and the thread that calls them.

    They end when this object is garbage-collected.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        thread.start()
        before = set(active_children())
        try:
            self.llm = self.submit(_start(settings)).result(timeout=_START_S)
        except Exception as err:  # vLLM raises any type; its processes have ended then
            self._loop.call_soon_threadsafe(self._loop.stop)
            if isinstance(err, ServingError):
                raise
            raise ServingError(
                f"{settings.folder}: vLLM does not start: {type(err).__name__}: "
                f"{str(err).splitlines()[0][:300]}"
            ) from err
        guard_process = guard([child.pid for child in set(active_children()) - before if child.pid])
        weakref.finalize(self, _end, self.llm, self._loop, guard_process).atexit = False

    @property
    def is_dead(self) -> bool:
        return bool(self.llm.errored)

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def next_number(self) -> int:
        return next(self._numbers)

    def add_adapter(self, name: str, adapter: Path) -> Any:
        """Load an adapter, and return its request. A name may be used again for other weights."""
        from vllm.lora.request import LoRARequest

        number = self.next_number()
        request = LoRARequest(f"{name}-{number}", number, str(adapter))
        try:
            has_room = self.submit(self.llm.add_lora(request)).result(timeout=_SCORE_S)
        except Exception as err:
            raise ArtifactError(
                f"{adapter}: vLLM cannot load this adapter: {str(err).splitlines()[0][:300]}"
            ) from err
        if not has_room:
            raise ArtifactError(f"{adapter}: vLLM has no room for this adapter")
        return request


class VllmEngine:
    """One release on a core: its adapter, or the core's own weights without one."""

    def __init__(
        self, core: Core, tokenizer: Any, name: str = "", adapter: Path | None = None
    ) -> None:
        self.core, self.tokenizer = core, tokenizer
        self._adapter = core.add_adapter(name, adapter) if adapter else None
        self._ends = end_tokens(tokenizer, config_end_tokens(core.settings.folder))
        if self._adapter:
            weakref.finalize(self, _drop, core, self._adapter.lora_int_id).atexit = False

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        raise ConfigError(f"{self.core.settings.folder}: vLLM gives no head outputs")

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        raise ConfigError(f"{self.core.settings.folder}: vLLM gives no head outputs")

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Score every continuation with its whole prompt: good for a probe, slow for many
        labels."""
        check_continuations(prompts, continuations)

        async def every() -> list[float]:
            pairs = [(prompt, ids) for prompt in prompts for ids in continuations]
            return await asyncio.gather(*(self._likelihood(prompt, ids) for prompt, ids in pairs))

        scores = self.core.submit(every()).result(timeout=_SCORE_S)
        return np.array(scores, dtype=np.float32).reshape(len(prompts), len(continuations))

    def score_branches(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]
    ) -> list[list[npt.NDArray[np.float32]]]:
        """Score each branch with its whole prompt: good for a probe, slow for many questions."""
        return [
            [self.score([[*prompt, *branch.tokens]], branch.continuations)[0] for branch in own]
            for prompt, own in zip(prompts, branches, strict=True)
        ]

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        rows = tokenize(self.tokenizer, prompts)
        check_rows(rows)

        async def one(index: int) -> list[Chunk]:
            return [
                replace(chunk, index=index)
                async for chunk in self.stream(rows[index], sampling_of(sampling, index))
            ]

        async def every() -> list[list[Chunk]]:
            return await asyncio.gather(*map(one, range(len(rows))))

        for chunks in self.core.submit(every()).result():
            yield from chunks

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the chunks of one prompt; run it in the core's loop, by `core.submit`.

        Closing or cancelling it frees its row.
        """
        text = GeneratedText(self.tokenizer, sampling, self._ends)
        async with aclosing(self._request(prompt, self._params(sampling))) as outputs:
            async for output in outputs:
                (piece,) = output.outputs
                self._add_tokens(text, piece, sampling.logprobs)
                chunk = text.take(0)
                if chunk is not None:
                    yield chunk
                    if chunk.finish:
                        return
        raise ServingError("vLLM ended a text without a reason; see its log")

    def _add_tokens(self, text: GeneratedText, piece: Any, num_top: int | None) -> None:
        for at, token in enumerate(piece.token_ids):
            logprob = None
            if num_top is not None:
                logprobs = {number: entry.logprob for number, entry in piece.logprobs[at].items()}
                top = sorted(logprobs.items(), key=lambda item: -item[1])[:num_top]
                logprob = token_logprob(self.tokenizer, token, logprobs[token], top)
            text.add(token, logprob)
            if text.finish:
                return
        if (
            piece.finish_reason == "length"
        ):  # the end of the window, before the limit of the request
            text.cut()

    def _params(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.seed is None else sampling.seed % (1 << 63),
            logprobs=sampling.logprobs,
            stop_token_ids=sorted(self._ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    async def _likelihood(self, prompt: Sequence[int], continuation: Sequence[int]) -> float:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        async with aclosing(self._request([*prompt, *continuation], params)) as outputs:
            async for output in outputs:
                if output.prompt_logprobs:
                    logprobs = output.prompt_logprobs[-len(continuation) :]
                    return float(
                        sum(
                            of_token[token].logprob
                            for of_token, token in zip(logprobs, continuation, strict=True)
                        )
                    )
        raise ServingError("vLLM returned no log-probabilities of a prompt")

    def _request(self, prompt: Sequence[int], params: Any) -> Any:
        from vllm.inputs.engine import tokens_input

        return self.core.llm.generate(
            tokens_input(list(prompt)),
            params,
            str(self.core.next_number()),
            lora_request=self._adapter,
        )


def _check_build(settings: Settings) -> None:
    """Raise where vLLM's build would take a GPU that is not reserved, or leave one unused."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() == bool(settings.gpus):
        build, gpus = ("CPUs", "has one") if settings.gpus else ("GPUs", "has none")
        raise ServingError(
            f"{settings.folder}: the installed vLLM is built for {build}, and this deployment "
            f"{gpus}; change gpus, install the other build, or set engine: transformers"
        )


async def _start(settings: Settings) -> Any:
    set_environment(settings)
    _check_build(settings)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    options: dict[str, Any] = {}
    if settings.gpus:
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        options["gpu_memory_utilization"] = settings.memory_share(total_bytes)
    if settings.rank:
        options |= {
            "enable_lora": True,
            "max_lora_rank": settings.rank,
            "max_loras": settings.num_adapters,
            # Otherwise vLLM wraps the output layer too: 0.29.0 then multiplies nothing at every
            # token, and crashes at prompt_logprobs in a batch.
            "lora_target_modules": list(settings.targets),
        }
        if not settings.gpus:
            options["worker_extension_cls"] = "medray.engines.vllm.lora_cpu.Extension"
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(settings.folder),
            skip_tokenizer_init=True,  # input and output are token ids
            trust_remote_code=False,
            # otherwise the base model's temperature would be the default of requests
            generation_config="vllm",
            dtype=dtype_name(settings.precision),
            max_model_len=settings.window,
            max_num_seqs=settings.num_rows,
            kv_cache_memory_bytes=settings.cache_bytes,
            tensor_parallel_size=max(1, settings.gpus),
            # With compilation, a model of 135M took minutes longer to start on two cores, and a
            # promotion waits for that.
            enforce_eager=not settings.gpus,
            disable_log_stats=True,
            enable_log_requests=False,
            **options,
        )
    )


def _end(llm: Any, loop: asyncio.AbstractEventLoop, guard_process: subprocess.Popen[bytes]) -> None:
    """End vLLM in a new thread: it takes seconds, and the caller may be an event loop that serves
    other requests."""

    def end() -> None:
        if llm.output_handler is not None:  # otherwise it logs the end as a failure
            loop.call_soon_threadsafe(llm.output_handler.cancel)
        llm.shutdown(timeout=_END_S)
        loop.call_soon_threadsafe(loop.stop)
        guard_process.kill()
        guard_process.wait()

    threading.Thread(target=end, name="vllm ends", daemon=True).start()


def _drop(core: Core, number: int) -> None:
    if not core.is_dead:
        core.submit(core.llm.remove_lora(number))
