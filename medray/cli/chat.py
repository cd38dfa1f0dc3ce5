"""The command that talks to a release in a terminal."""

import sys
from typing import Annotated, Any

import typer

from medray.cli.arguments import Storage, TokenFile, read_token

app = typer.Typer()


@app.command()
def chat(
    release: Annotated[str, typer.Argument(help="name@version, name@alias or a name, loaded here; or the URL of a service")],
    model: Annotated[str | None, typer.Option(help="with a URL: which release, where several talk")] = None,
    token_file: TokenFile = None,
    system: Annotated[str | None, typer.Option(help="a system message of yours, read after the release's own")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of an answer; the release's own number where not given")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 says the most probable")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="with a temperature: the same seed says the same")] = None,
    storage_path: Storage = "runs",
) -> None:
    """Talk to a release: a line a turn; /reset begins anew, /quit ends."""
    from medray import conversation
    from medray.client import Client
    from medray.errors import ConfigError

    asked = {"max_tokens": max_tokens, "temperature": temperature or None, "seed": seed}
    settings: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    is_url = release.startswith(("http://", "https://"))
    if not is_url and (model or token_file):
        raise ConfigError(f"--{'model' if model else 'token-file'} and {release}: is for a service, named by its URL")
    partner: conversation.Partner
    if is_url:
        partner = conversation.Remote.open(Client(release, read_token(token_file), timeout_s=120.0), model, settings)
    else:
        partner = conversation.Local.open(release, storage_path, settings)
    try:
        conversation.converse(partner, sys.stdin, _write, system=system, prompt="> " if sys.stdin.isatty() else "")
    except KeyboardInterrupt:
        _write("\n")


def _write(text: str) -> None:
    print(text, end="", flush=True)
