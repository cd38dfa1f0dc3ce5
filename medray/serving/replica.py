"""A Serve replica of a head release: a thin shell that loads, follows, answers and reports. No arithmetic here."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import ray
import torch
from ray import serve
from ray.util.metrics import Gauge

from medray.errors import DataError
from medray.registry import Registry, Release
from medray.serving.batching import LateError, OverloadedError, TooManyTokensError
from medray.serving.follow import Follower
from medray.serving.head import Head, open_head
from medray.serving.process import prepare
from medray.serving.schemas import RETRY_AFTER_S, AppOptions, Refused, ReplicaReport, Request, Response


class HeadReplica:
    def __init__(self, reference: str, options: AppOptions) -> None:
        prepare()
        given = ray.get_runtime_context().get_assigned_resources()
        threads = max(1, int(given.get("CPU", 1)))
        torch.set_num_threads(threads)
        self.options = options
        self.device = "cuda" if given.get("GPU") and torch.cuda.is_available() else "cpu"
        self.replica = serve.get_replica_context().replica_id.unique_id
        # One thread computes; the others encode, wait for their rows and put answers together.
        self.compute = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
        self.requests = ThreadPoolExecutor(options.limits.ongoing_requests, "request")
        self.gauge = Gauge("medray_release_version", "version that a replica serves", tag_keys=("model",))
        self.gauge.set_default_tags({"model": reference})
        self.follower: Follower[Head] = Follower(
            Registry(options.storage_path), reference, self._open, every_s=options.follow_s, retry_s=options.retry_s
        )
        self.follower.start()

    def _open(self, release: Release) -> Head:
        head = open_head(release, self.options, self.compute, device=self.device)
        self.gauge.set(head.version)
        return head

    async def answer(self, request: Request, timeout_s: float) -> Response | Refused:
        deadline = time.monotonic() + timeout_s
        return await asyncio.get_running_loop().run_in_executor(self.requests, self._answer, request, deadline)

    def _answer(self, request: Request, deadline: float) -> Response | Refused:
        head = self.follower.model
        if not isinstance(request, head.route.request):
            return Refused(400, "wrong_route", f"{head.release} is asked at {head.route.paths[0]}")
        try:
            return head.answer(request, max_tokens=self.options.limits.tokens, deadline=deadline)
        except DataError:  # the only one that a text can cause; its message counts rows of a batch, which the sender cannot see
            return Refused(422, "invalid_request", "a text holds no token that the model could read")
        except TooManyTokensError as err:
            return Refused(413, "too_many_tokens", str(err))
        except OverloadedError:
            return Refused(429, "overloaded", "too many texts are waiting; try again later", RETRY_AFTER_S)
        except LateError:
            return Refused(504, "deadline_exceeded", "the answer was not ready in time")

    async def report(self) -> ReplicaReport:
        following, head = self.follower, self.follower.model
        return ReplicaReport(
            replica=self.replica,
            release=head.release,
            version=head.version,
            precision=head.precision,
            error=following.error,
            error_version=following.error_version,
        )
