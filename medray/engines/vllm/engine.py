"""Text by vLLM, in processes of its own: on one core, releases as LoRA requests on their base, or one merged model.

The one file of this process that imports vLLM (its workers import `_lora`), inside functions: that takes seconds, and reads its
environment. Prompts are token ids; what becomes of the tokens (text, stop strings, ends) is ours, so that both engines say the same. Knows no task.
"""

import asyncio
import itertools
import subprocess
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medray.engines.vllm.process import (
    HEAD_SIZES,
    RANKS,
    Settings,
    ends_of,
    guard,
    head_size,
    is_installed,
    set_environment,
    window_of,
)
from medray.errors import ArtifactError, ConfigError, DataError, ServingError
from medray.models.precision import dtype_name
from medray.text.detokenize import Text
from medray.types import Chunk, Sampling, TokenLogprob

__all__ = ["HEAD_SIZES", "RANKS", "Core", "Settings", "VllmEngine", "head_size", "is_installed", "window_of"]
_START_S, _SCORE_S, _END_S = 900.0, 300.0, 10.0
Found = TypeVar("Found")


class Core:
    """The processes of vLLM for one set of weights, and the thread that talks to them. They end when nobody holds it any more."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        thread.start()
        before = set(active_children())
        try:
            self.llm = self.submit(_start(settings)).result(timeout=_START_S)
        except Exception as err:  # vLLM's own, of any kind: its processes are gone then
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise ServingError(f"{settings.folder}: vLLM does not start: {type(err).__name__}: {str(err).splitlines()[0][:300]}") from err
        watching = guard([child.pid for child in set(active_children()) - before if child.pid])
        weakref.finalize(self, _end, self.llm, self._loop, watching).atexit = False

    @property
    def is_dead(self) -> bool:
        return bool(self.llm.errored)

    def submit(self, work: Coroutine[Any, Any, Found]) -> "Future[Found]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def next_number(self) -> int:
        return next(self._numbers)

    def put(self, name: str, adapter: Path) -> Any:
        """An adapter's request, once its weights are there; a name may come again with others."""
        from vllm.lora.request import LoRARequest

        number = self.next_number()
        request = LoRARequest(f"{name}-{number}", number, str(adapter))
        try:
            added = self.submit(self.llm.add_lora(request)).result(timeout=_SCORE_S)
        except Exception as err:
            raise ArtifactError(f"{adapter}: vLLM does not load this adapter: {str(err).splitlines()[0][:300]}") from err
        if not added:
            raise ArtifactError(f"{adapter}: vLLM has no room for this adapter")
        return request


class VllmEngine:
    """One release on a core: its adapter, or without one the core's own weights."""

    def __init__(self, core: Core, tokenizer: Any, name: str = "", adapter: Path | None = None) -> None:
        self.core, self.tokenizer = core, tokenizer
        self._adapter = core.put(name, adapter) if adapter else None
        self._ends = ends_of(core.settings.folder, tokenizer)
        if self._adapter:
            weakref.finalize(self, _drop, core, self._adapter.lora_int_id).atexit = False

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        raise ConfigError(f"{self.core.settings.folder}: vLLM gives no head outputs")

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        raise ConfigError(f"{self.core.settings.folder}: vLLM gives no head outputs")

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Every continuation behind every prompt is read whole: right for a probe, wasteful for many labels."""
        if not all(map(len, prompts)) or not continuations or not all(map(len, continuations)):
            raise DataError("a prompt and its continuations need at least one token each")

        async def every() -> list[float]:
            pairs = [(prompt, ids) for prompt in prompts for ids in continuations]
            return await asyncio.gather(*(self._likelihood(prompt, ids) for prompt, ids in pairs))

        found = self.core.submit(every()).result(timeout=_SCORE_S)
        return np.array(found, dtype=np.float32).reshape(len(prompts), len(continuations))

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        rows = [self.tokenizer(row, split_special_tokens=True)["input_ids"] if isinstance(row, str) else row for row in prompts]
        if not all(map(len, rows)):
            raise DataError("an empty text cannot be answered")

        async def one(index: int) -> list[Chunk]:
            seed = None if sampling.seed is None else sampling.seed + index
            return [replace(chunk, index=index) async for chunk in self.stream(rows[index], replace(sampling, seed=seed))]

        async def every() -> list[list[Chunk]]:
            return await asyncio.gather(*map(one, range(len(rows))))

        for chunks in self.core.submit(every()).result():
            yield from chunks

    async def stream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        """In the core's loop (`core.submit`). Closed or cancelled, its row is free."""
        text, told = Text(self.tokenizer, sampling.stop), _Told()
        async with aclosing(self._ask(prompt, self._params(sampling))) as outputs:
            async for output in outputs:
                (found,) = output.outputs
                chunk = self._chunk(found, text, told, sampling)
                if chunk is not None:
                    yield chunk
                    if chunk.finish:
                        return
        raise ServingError("vLLM ended a text without saying why")

    def _chunk(self, found: Any, text: Text, told: "_Told", sampling: Sampling) -> Chunk | None:
        piece, finish = "", None
        for at, token in enumerate(found.token_ids):
            told.num_tokens += 1
            if sampling.logprobs is not None:
                told.logprobs.append(self._logprob(found.logprobs[at], token, sampling.logprobs))
            if token in self._ends:
                piece, finish = piece + text.end(), "stop"
                break
            piece += text.push(token)
            if text.stopped:
                finish = "stop"
                break
        if found.finish_reason == "length" and finish is None:
            piece += text.end()
            finish = "stop" if text.stopped else "length"
        if not piece and not finish:
            return None
        chunk = Chunk(0, piece, finish, told.num_tokens, tuple(told.logprobs))
        told.num_tokens, told.logprobs = 0, []
        return chunk

    def _logprob(self, found: Mapping[int, Any], token: int, most: int) -> TokenLogprob:
        ranked = sorted(found.items(), key=lambda item: -item[1].logprob)[:most]
        return TokenLogprob(
            self.tokenizer.decode([token]),
            found[token].logprob,
            tuple((self.tokenizer.decode([number]), one.logprob) for number, one in ranked),
        )

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
        async with aclosing(self._ask([*prompt, *continuation], params)) as outputs:
            async for output in outputs:
                if output.prompt_logprobs:
                    told = output.prompt_logprobs[-len(continuation) :]
                    return float(sum(found[token].logprob for found, token in zip(told, continuation, strict=True)))
        raise ServingError("vLLM told no log-probabilities of a prompt")

    def _ask(self, prompt: Sequence[int], params: Any) -> Any:
        from vllm.inputs.engine import tokens_input

        return self.core.llm.generate(tokens_input(list(prompt)), params, str(self.core.next_number()), lora_request=self._adapter)


@dataclass
class _Told:
    """What came since the last chunk."""

    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)


async def _start(settings: Settings) -> Any:
    set_environment(settings)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    lora: dict[str, Any] = {}
    if settings.rank:
        lora = {
            "enable_lora": True,
            "max_lora_rank": settings.rank,
            "max_loras": settings.num_adapters,
            # Else the output layer is wrapped too: 0.29.0 then multiplies nothing at every token, and dies of prompt_logprobs in a batch.
            "lora_target_modules": list(settings.targets),
        }
        if not settings.gpus:
            lora["worker_extension_cls"] = "medray.engines.vllm.lora_cpu.Extension"
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(settings.folder),
            skip_tokenizer_init=True,  # token ids go in and come out
            trust_remote_code=False,
            generation_config="vllm",  # else a base's own temperature would be taken where a request says none
            dtype=dtype_name(settings.precision),
            max_model_len=settings.window,
            max_num_seqs=settings.num_rows,
            kv_cache_memory_bytes=settings.cache_bytes,
            tensor_parallel_size=max(1, settings.gpus),
            # Compiled, a model of 135M took minutes longer to start on two cores, and a promotion waits for that.
            enforce_eager=not settings.gpus,
            disable_log_stats=True,
            enable_log_requests=False,
            **lora,
        )
    )


def _end(llm: Any, loop: asyncio.AbstractEventLoop, watching: subprocess.Popen[bytes]) -> None:
    """In a thread of its own: it takes seconds, and whoever let go last may be a loop that answers others."""

    def end() -> None:
        if llm.output_handler is not None:  # else it logs the end as a failure
            loop.call_soon_threadsafe(llm.output_handler.cancel)
        llm.shutdown(timeout=_END_S)
        loop.call_soon_threadsafe(loop.stop)
        watching.kill()
        watching.wait()

    threading.Thread(target=end, name="vllm ends", daemon=True).start()


def _drop(core: Core, number: int) -> None:
    if not core.is_dead:
        core.submit(core.llm.remove_lora(number))
