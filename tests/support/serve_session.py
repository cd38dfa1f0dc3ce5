"""A Serve session with tiny models, started from YAML: classifiers and a chat release."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import yaml
from support import load, tiny

from medray import cli
from medray.client import Client
from medray.errors import ServingError
from medray.registry.registry import Registry
from medray.runtime.cluster import free_port
from medray.runtime.session_files import private_folder
from medray.serving import auth, front, haproxy
from medray.serving.deployments import Deployments
from medray.serving.schemas import AppOptions, Limits

CONFIG = Path(__file__).parents[2] / "serve_configs" / "quickstart.yaml"
TOKEN = "the-token-of-these-tests"
LONG = 3500  # tokens of a generated text: seconds of work for a tiny model


@dataclass(frozen=True)
class Served:
    port: int
    storage: Path
    logs: Path
    audit: Path
    at_start: tuple[str, ...]  # the states of cancer@best in /healthz until it served
    prefix: str = ""

    @property
    def registry(self) -> Registry:
        return Registry(str(self.storage))

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}{self.prefix}", TOKEN)

    @property
    def path(self) -> str:
        """The path that classifies."""
        return f"{self.prefix}{load.PATH}"

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.client.url}/v1", api_key=TOKEN, max_retries=0, timeout=60
        )

    def say(self, text: str, **others: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self.openai.chat.completions.create(
            **{"model": "adviser", "messages": messages, **others}
        )

    def generating(self) -> int:
        return sum(
            replica["generating"]
            for replica in self.client.health()["releases"]["adviser@1"]["replicas"]
        )

    def wait_until_generating(self, number: int) -> None:
        end = time.monotonic() + 20
        while self.generating() != number:
            assert time.monotonic() < end, self.generating()
            time.sleep(0.1)

    def audit_lines(self, part: str) -> list[str]:
        end = time.monotonic() + 10
        while not (lines := [line for line in self.audit.read_text().splitlines() if part in line]):
            assert time.monotonic() < end
            time.sleep(0.1)
        return lines

    def run(self, *arguments: str) -> int:
        options = [
            "--url",
            self.client.url,
            "--token-file",
            str(self.storage / "token"),
            "--storage-path",
            str(self.storage),
        ]
        return cli.main([*arguments, *options])


def publish(folder: Path, *settings: str, family: str = "bert") -> Path:
    folder.mkdir()
    return (
        tiny.trial(tiny.study(folder, "train.epochs=1", *settings, family=family), folder)
        .run()
        .checkpoint
    )


def publish_adviser(registry: Registry, place: Path) -> None:
    """Publish a chat release that never ends a text by itself, so that the limit of tokens does."""
    from transformers import LlamaForCausalLM

    place.mkdir()
    base = tiny.base(place, "llama", max_position_embeddings=4096)
    model = LlamaForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[tiny.tokenizer("llama").eos_token_id] = (
        0  # so that other tokens are always more probable
    )
    model.save_pretrained(base)
    study = tiny.instruct_study(
        place, "train={max_steps: 1, learning_rate: 1e-9}", "train.epochs=null"
    )
    registry.publish(tiny.trial(study, place).run().checkpoint, "adviser")


@contextmanager
def serving(place: Path) -> Iterator[Served]:
    """Serve versions of cancer: 1 and 2 share a base, 3 has another, 4 has a damaged file, 5 is
    whole. HAProxy is in front where Ray brings it.

    There are two ingresses. `best` is version 1, on two replicas. adviser 1 generates two long
    texts at a time on one replica, and a third waits.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    storage = place / "runs"
    registry = Registry(str(storage))
    registry.publish(publish(place / "a"), "cancer")
    registry.publish(publish(place / "b", "seed=1"), "cancer")
    registry.publish(publish(place / "c", family="roberta"), "cancer")
    adapter_path = (
        registry.publish(publish(place / "d", "seed=2"), "cancer").folder()
        / "adapter_model.safetensors"
    )
    adapter_path.write_bytes(adapter_path.read_bytes()[:-1] + b"\x01")
    registry.publish(publish(place / "e", "seed=3"), "cancer")
    registry.point("cancer", "best", 1)
    publish_adviser(registry, place / "f")
    (storage / "token").write_text(TOKEN + "\n")
    (storage / "tokens").write_text(auth.digest(TOKEN) + "\n")
    port = free_port()
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] = arguments(
        storage, place / "audit" / "audit.log", "cancer@best", "cancer@1", "adviser@1"
    )
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
    }
    half = {"num_cpus": 0.5}  # up to six replicas fit on the four CPUs that the tests' Ray counts
    application["deployments"] = [
        {"name": "Ingress", "num_replicas": 2},
        {"name": "cancer@best", "num_replicas": 2, "ray_actor_options": half},
        {
            "name": "cancer@1",
            "autoscaling_config": scaling | {"look_back_period_s": 12},
            "ray_actor_options": half,
        },
        {"name": "adviser@1", "ray_actor_options": half},
    ]
    folder = tempfile.TemporaryDirectory(dir=private_folder(), prefix="h")
    try:
        variables = front.environment(100_000) | haproxy.environment(
            Limits(body_bytes=100_000), Path(folder.name), "127.0.0.1"
        )
        options = {"runtime_env": {"env_vars": variables}}
        serve.start(
            proxy_location="HeadOnly",
            http_options=config["http_options"],
            controller_options=options,
        )
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        audit = Path(application["args"]["audit_log"])
        yield Served(
            port,
            storage,
            logs,
            audit,
            _wait_until_running(Client(f"http://127.0.0.1:{port}", TOKEN)),
        )
    finally:
        end_serve()
        folder.cleanup()


def arguments(storage: Path, audit_log: Path, *releases: str) -> dict[str, Any]:
    """Return the options of an application, whose queues are short."""
    return {
        "releases": releases,
        "storage_path": str(storage),
        "tokens_file": str(storage / "tokens"),
        "audit_log": str(audit_log),
        "precision": "fp32",
        "token_budget": 256,
        "generation_tokens": 7500,
        "explanations": True,
        "follow_s": 0.3,
        "limits": {
            "body_bytes": 100_000,
            "inputs": 64,
            "tokens": 4000,
            "waiting_tokens": 4000,
            "new_tokens": LONG,
            "ongoing_requests": 4,
            "queued_requests": 8,
            "timeout_s": 60,
        },
    }


@contextmanager
def one_deployment(served: Served, release: str, *, replicas: int = 1) -> Iterator[Served]:
    """Serve a release beside the applications of the session, as one deployment at a path of its
    own."""
    from ray import serve

    name = f"only-{release.partition('@')[0]}"
    audit = served.audit.with_name(f"{name}.log")
    options = AppOptions.model_validate(
        arguments(served.storage, audit, release) | {"replicas": replicas, "cpus": 0.25}
    )
    application = Deployments.of(options).application(0, has_haproxy=True, num_replicas=None)
    try:
        serve.run_many([serve.RunTarget(application, name, f"/{name}")])
        yield replace(served, prefix=f"/{name}", audit=audit, at_start=())
    finally:
        serve.delete(name)


def end_serve() -> None:
    """Shut Serve down and wait for its controller to end.

    Serve itself gives up after 30 s; the next start would then use a controller that is ending."""
    import ray
    from ray import serve

    serve.shutdown()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            return
        time.sleep(0.1)
    raise AssertionError("Serve's controller has not ended")


def _wait_until_running(client: Client) -> tuple[str, ...]:
    from ray import serve

    end, statuses = time.monotonic() + 400, []
    while time.monotonic() < end:
        application = serve.status().applications["medray"]
        if application.status == "RUNNING":
            return tuple(statuses)
        assert application.status != "DEPLOY_FAILED", application.message
        with contextlib.suppress(ServingError):
            statuses.append(client.health()["releases"]["cancer@best"]["status"])
        time.sleep(0.2)
    raise AssertionError("the application did not start")


def processes(root: int | None = None) -> dict[int, str]:
    """Return the ids of a process (by default this one) and all its descendants, with the names
    that they show."""
    parents, names = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int(
                (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
            )
            names[int(process.name)] = (
                (process / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
    below = {root or os.getpid()}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {number: names[number] for number in below if number in names}
