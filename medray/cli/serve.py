"""Commands that serve releases and move what is served."""

import math
import os
import signal
import threading
from typing import Annotated

import typer

from medray.cli.arguments import Reference, RequireSignature, Storage, TokenFile, read_token
from medray.client import Client
from medray.errors import ConfigError

app = typer.Typer()
Url = Annotated[
    str | None,
    typer.Option(help="where the service answers; http://127.0.0.1:8000 where not given"),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="write the alias and wait for nobody")]
_MOST_REPLICAS = 8  # by default: each holds its model in memory
Timeout = Annotated[
    float, typer.Option("--timeout", help="seconds until every replica must report the version")
]


@app.command()
def serve(
    references: Annotated[
        list[str], typer.Argument(help="releases: name@alias is followed, name@version stays")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the HTTP service")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="address to listen on; any but loopback needs --tokens-file or --open-to-all"
        ),
    ] = "127.0.0.1",
    prefix: Annotated[
        str,
        typer.Option(help="path below which it answers, beside other applications of a cluster"),
    ] = "/",
    tokens_file: Annotated[
        str | None, typer.Option(help="file with the SHA-256 of a token a line")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", help="a name besides localhost that browsers may ask; may be repeated"
        ),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="answer everybody who reaches the address")
    ] = False,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    engine: Annotated[
        str, typer.Option(help="auto, transformers or vllm, for releases that talk")
    ] = "auto",
    replicas: Annotated[
        int | None,
        typer.Option(
            help="of each release; one for each CPU that is its share, 8 at most, where not given"
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs and threads of a replica; its share where not given")
    ] = None,
    require_signature: RequireSignature = None,
    storage_path: Storage = "runs",
) -> None:
    """Serve releases over HTTP until Ctrl-C, on an embedded Ray where there is none."""
    from medray.config.schema import validate
    from medray.serving.schemas import CHAT_PATH, AppOptions
    from medray.storage import files

    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // len(references))
    # Replicas of one thread answer more together than one of many threads, as trials do.
    replicas = replicas or (max(1, share // cpus) if cpus else min(share, _MOST_REPLICAS))
    raw = {
        "releases": references,
        "storage_path": storage_path
        if "://" in storage_path
        else str(files.absolute(storage_path)),
        "precision": precision,
        "engine": engine,
        "replicas": replicas,
        "cpus": cpus or max(1, share // replicas),
        "tokens_file": os.path.abspath(tokens_file) if tokens_file else None,
        "hosts": allowed_hosts or [],
        "open_to_all": open_to_all,
        "require_signature": str(require_signature.absolute()) if require_signature else None,
    }
    options = validate(AppOptions, raw, where="medray serve")
    from medray.serving.app import first_path, serving

    stop = threading.Event()
    prefix = "/" + prefix.strip("/")
    num_cpus = max(cores, math.ceil(options.cpus * replicas * len(references)))
    with serving(options, host=host, port=port, prefix=prefix, num_cpus=num_cpus) as url:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            signal.signal(wanted, lambda number, frame: stop.set())
        print(
            f"{', '.join(references)} at {url}, documented at {url}/docs; Ctrl-C stops it",
            flush=True,
        )
        path = first_path(references, options.storage_path)
        body = (
            '{"messages": [{"role": "user", "content": "..."}]}'
            if path == CHAT_PATH
            else '{"text": "..."}'
        )
        print(f"curl {url}{path} -H 'content-type: application/json' -d '{body}'", flush=True)
        stop.wait()
        print("stopping", flush=True)


@app.command()
def promote(
    reference: Reference,
    alias: Annotated[str, typer.Argument(help="the alias to point at it, such as best")],
    url: Url = None,
    token_file: TokenFile = None,
    no_wait: NoWait = False,
    timeout_s: Timeout = 120.0,
    storage_path: Storage = "runs",
) -> None:
    """Point an alias at a version and wait until every replica serves it."""
    from medray.registry.registry import Registry
    from medray.serving import promotion

    live = promotion.promote(
        Registry(storage_path),
        reference,
        alias,
        _client(url, token_file, no_wait),
        timeout_s=timeout_s,
    )
    _say(live, alias, no_wait)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="the release's name")],
    alias: Annotated[str, typer.Argument(help="the alias to move back, such as best")],
    url: Url = None,
    token_file: TokenFile = None,
    no_wait: NoWait = False,
    timeout_s: Timeout = 120.0,
    storage_path: Storage = "runs",
) -> None:
    """Point an alias at the version before, and wait until every replica serves it."""
    from medray.registry.registry import Registry
    from medray.serving import promotion

    live = promotion.rollback(
        Registry(storage_path), name, alias, _client(url, token_file, no_wait), timeout_s=timeout_s
    )
    _say(live, alias, no_wait)


def _client(url: str | None, token_file: str | None, no_wait: bool) -> Client | None:
    if no_wait and url:
        raise ConfigError(f"--no-wait and --url {url}: nobody is asked when nobody is waited for")
    if no_wait:
        return None
    return Client(url or Client.url, token=read_token(token_file))


def _say(live: str, alias: str, no_wait: bool) -> None:
    print(
        f"{live} is {live.partition('@')[0]}@{alias}"
        + ("" if no_wait else ", and every replica serves it")
    )
