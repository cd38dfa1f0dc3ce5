"""Commands that serve releases and change which version is served."""

import math
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from medray.cli.arguments import Reference, RequireSignature, Storage, TokenFile, read_token
from medray.cli.output import Json, Output, Quiet
from medray.cli.predict import PrecisionOption
from medray.client import Client
from medray.errors import UsageError

app = typer.Typer()
Url = Annotated[
    str | None, typer.Option(help="the service's address; by default http://127.0.0.1:8000")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="move the alias and do not wait for any replica")
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="seconds until every replica must report the version")
]
TokensFile = Annotated[
    Path | None, typer.Option(help="file with the SHA-256 of one token per line")
]
Explanations = Annotated[
    bool,
    typer.Option("--explanations", help="answer at /v1/explain which words a label rests on"),
]
_MAX_REPLICAS = 8  # by default: each holds its model in memory


@app.command()
def serve(
    references: Annotated[
        list[str] | None,
        typer.Argument(help="releases: name@alias follows the alias, name@version stays"),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the HTTP service")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="address to listen on; any but loopback needs --tokens-file or --open-to-all"
        ),
    ] = "127.0.0.1",
    prefix: Annotated[
        str,
        typer.Option(help="path prefix of the service, beside other applications of a cluster"),
    ] = "/",
    tokens_file: TokensFile = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            help="a host name besides localhost that requests may name; repeat it for several",
        ),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="serve everybody who reaches the address")
    ] = False,
    precision: PrecisionOption = "auto",
    engine: Annotated[
        Literal["auto", "transformers", "vllm"], typer.Option(help="engine of releases that chat")
    ] = "auto",
    replicas: Annotated[
        int | None,
        typer.Option(
            help="replicas per release; by default one per GPU or CPU of its share, at most 8"
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs and threads per replica; by default its share")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs per replica; by default one, or a part where there are few"),
    ] = None,
    explanations: Explanations = False,
    require_signature: RequireSignature = None,
    storage_path: Storage = "runs",
    quiet: Quiet = False,
) -> None:
    """Serve releases over HTTP until Ctrl-C, on a Ray of its own where none is named."""
    from medray.config.schema import validate
    from medray.serving.schemas import AppOptions
    from medray.storage import files

    if not references:
        raise UsageError(_choices(storage_path))
    out = Output.start(False, quiet)
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // len(references))
    replicas = replicas or _num_replicas(len(references), share // (cpus or 1), gpus)
    raw = {
        "releases": references,
        "storage_path": storage_path
        if "://" in storage_path
        else str(files.absolute(storage_path)),
        "precision": precision,
        "engine": engine,
        "replicas": replicas,
        "cpus": cpus or max(1, share // replicas),
        "gpus": gpus,
        "tokens_file": os.path.abspath(tokens_file) if tokens_file else None,
        "hosts": allowed_hosts or [],
        "open_to_all": open_to_all,
        "explanations": explanations,
        "require_signature": str(require_signature.absolute()) if require_signature else None,
    }
    options = validate(AppOptions, raw, where="medray serve")
    from medray.serving.app import first_path, serving

    num_cpus = max(cores, math.ceil(options.cpus * replicas * len(references)))
    print(f"starting Ray and loading {', '.join(references)}", flush=True)
    with serving(
        options, host=host, port=port, prefix="/" + prefix.strip("/"), num_cpus=num_cpus
    ) as url:
        stop = _stop_at_signals()
        path = first_path(references, options.storage_path)
        out.result(
            None,
            f"{', '.join(references)} at {url}, documented at {url}/docs; Ctrl-C stops it",
            *([f"curl {url}{path} {_example(path)}"] if path else []),
        )
        stop.wait()
        print("stopping", flush=True)


def _stop_at_signals() -> threading.Event:
    """Return an event that Ctrl-C or SIGTERM sets."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.set())
    return stop


def _choices(storage_path: str) -> str:
    """Return what to do where no release is named: the releases that exist, by alias if they have
    one."""
    from medray.registry.registry import Registry

    registry = Registry(storage_path)
    references = [
        f"{name}@{target}"
        for name in registry.names()
        for target in registry.alias_names(name) or registry.versions(name)[-1:]
    ]
    if not references:
        return (
            f"name a release, such as cancer@best; {registry.store.uri} has none: medray study "
            "publishes one, or give another --storage-path"
        )
    return (
        f"name a release, such as {references[0]}; {registry.store.uri} has "
        f"{', '.join(references[:20])}"
    )


def _num_replicas(num_releases: int, most: int, gpus: float | None) -> int:
    """Return the replicas per release. Those of one thread give more predictions per second
    together than one of many threads; those on one GPU would only divide its memory."""
    from medray.runtime.cluster import num_gpus_here

    if gpus != 0 and (num_gpus := num_gpus_here()):
        most = num_gpus // num_releases
    return max(1, min(most, _MAX_REPLICAS))


def _example(path: str) -> str:
    from medray.serving.schemas import CHAT_PATH, DECISIONS_PATH

    bodies = {
        CHAT_PATH: '{"messages": [{"role": "user", "content": "..."}]}',
        DECISIONS_PATH: '{"input": "...", "questions": [...]}',
    }
    body = bodies.get(path, '{"text": "..."}')
    return f"-H 'content-type: application/json' -d '{body}'"


@app.command()
def promote(
    reference: Reference,
    alias: Annotated[str, typer.Argument(help="the alias to move, such as best")],
    url: Url = None,
    token_file: TokenFile = None,
    no_wait: NoWait = False,
    timeout_s: Timeout = 120.0,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Point an alias at a version, and wait until every replica serves it."""
    from medray.registry.registry import Registry
    from medray.serving import promotion

    out = Output.start(as_json, quiet)
    live = promotion.promote(
        Registry(storage_path),
        reference,
        alias,
        _client(url, token_file, no_wait),
        timeout_s=timeout_s,
    )
    _print_alias(out, live, alias, no_wait)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="the release's name")],
    alias: Annotated[str, typer.Argument(help="the alias to move back, such as best")],
    url: Url = None,
    token_file: TokenFile = None,
    no_wait: NoWait = False,
    timeout_s: Timeout = 120.0,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Point an alias at its previous version, and wait until every replica serves it."""
    from medray.registry.registry import Registry
    from medray.serving import promotion

    out = Output.start(as_json, quiet)
    live = promotion.rollback(
        Registry(storage_path), name, alias, _client(url, token_file, no_wait), timeout_s=timeout_s
    )
    _print_alias(out, live, alias, no_wait)


def _client(url: str | None, token_file: str | None, no_wait: bool) -> Client | None:
    if no_wait and url:
        raise UsageError("--url has no effect with --no-wait; drop one of them")
    if no_wait:
        return None
    return Client(url or Client.url, token=read_token(token_file))


def _print_alias(out: Output, live: str, alias: str, no_wait: bool) -> None:
    out.result(
        {"release": live, "alias": alias, "is_served": not no_wait},
        f"{live} is {live.partition('@')[0]}@{alias}"
        + ("" if no_wait else ", and every replica serves it"),
    )
