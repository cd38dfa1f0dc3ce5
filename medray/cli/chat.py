"""The command that chats with a release in a terminal."""

import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from medray.cli.arguments import Storage, TokenFile, read_token
from medray.client import Client, RefusedError
from medray.errors import ConfigError, UsageError
from medray.types import DISCLAIMER, Message, Sampling

if TYPE_CHECKING:
    from medray.registry.loading import LoadedRelease
    from medray.tasks.base.protocol import Chatting

app = typer.Typer()


@app.command()
def chat(
    release: Annotated[
        str,
        typer.Argument(
            help="name@version, name@alias or a name, to load it here; or the URL of a service"
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="with a URL: the release, where several chat")
    ] = None,
    token_file: TokenFile = None,
    system: Annotated[
        str | None, typer.Option(help="your system message, which follows the release's own")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="most tokens per reply; by default the release's own limit"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="randomness; 0 takes the most probable token")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="with a temperature: makes replies repeatable")
    ] = None,
    storage_path: Storage = "runs",
) -> None:
    """Chat with a release, one line per turn. /reset starts a new conversation, /quit ends it."""
    options = {"max_tokens": max_tokens, "temperature": temperature or None, "seed": seed}
    settings: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    is_url = release.startswith(("http://", "https://"))
    if not is_url and (model or token_file):
        raise UsageError(
            f"--{'model' if model else 'token-file'} applies to the URL of a service, and "
            f"{release} is a release; drop one of them"
        )
    partner: Partner
    if is_url:
        partner = Remote.open(
            Client(release, read_token(token_file), timeout_s=120.0), model, settings
        )
    else:
        partner = Local.open(release, storage_path, settings)
    try:
        converse(
            partner, sys.stdin, _write, system=system, prompt="> " if sys.stdin.isatty() else ""
        )
    except KeyboardInterrupt:
        _write("\n")


def _write(text: str) -> None:
    print(text, end="", flush=True)


HELP = "/reset starts a new conversation, /quit ends"
Write = Callable[[str], None]


class Partner(Protocol):
    """The other side of a conversation: a release in this process, or behind HTTP."""

    @property
    def name(self) -> str: ...

    @property
    def system(self) -> str: ...

    @property
    def disclaimer(self) -> str: ...

    def reply(self, messages: list[Message]) -> Generator[str, None, None]:
        """Yield the reply in pieces."""
        ...


@dataclass(frozen=True)
class Remote:
    client: Client
    model: str
    name: str
    system: str
    disclaimer: str
    settings: dict[str, Any]

    @classmethod
    def open(cls, client: Client, model: str | None, settings: dict[str, Any]) -> "Remote":
        """Find the release on a server: the given one, or the only one that chats."""
        models = client.models()
        details = {name: client.model(name) for name in ([model] if model else models)}
        chats = [name for name, detail in details.items() if detail["system"] is not None]
        if len(chats) != 1:
            raise ConfigError(
                f"{client.url}: of its releases {', '.join(chats) or 'none'} can chat; name one "
                f"with --model, it serves {', '.join(models)}"
            )
        detail = details[chats[0]]
        return cls(
            client,
            chats[0],
            f"{detail['release']}@{detail['version']}",
            detail["system"],
            detail["disclaimer"],
            settings,
        )

    def reply(self, messages: list[Message]) -> Generator[str, None, None]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        yield from self.client.stream(turns, model=self.model, **self.settings)


@dataclass(frozen=True)
class Local:
    release: "LoadedRelease"
    sampling: Sampling

    @property
    def name(self) -> str:
        return self.release.reference

    @property
    def task(self) -> "Chatting":
        return cast("Chatting", self.release.task)  # as `open` has checked

    @property
    def system(self) -> str:
        return str(self.task.options.system)

    @property
    def disclaimer(self) -> str:
        return DISCLAIMER

    @classmethod
    def open(cls, reference: str, storage_path: str, settings: dict[str, Any]) -> "Local":
        """Load the release in this process, in fp32, merged where that changes no reply."""
        from medray.registry.registry import Registry
        from medray.tasks.base.protocol import Chatting

        release = Registry(storage_path).resolve(reference).load(precision="fp32", merge=True)
        options = release.task.options
        if not isinstance(release.task, Chatting):
            raise ConfigError(
                f"{release.reference}: its task {options.name!r} does not chat; choose a "
                "release of the task instruct"
            )
        return cls(release, Sampling(**{"max_tokens": options.max_new_tokens, **settings}))

    def reply(self, messages: list[Message]) -> Generator[str, None, None]:
        engine = self.release.engine
        prompt = self.task.prompt(messages, engine.tokenizer, self.sampling.max_tokens)
        for chunk in engine.generate([prompt], self.sampling):
            yield chunk.text


def converse(
    partner: Partner, lines: Iterable[str], write: Write, *, system: str | None, prompt: str = ""
) -> None:
    """Read one turn per line, until /quit or the end of the lines. The partner gets all turns so
    far."""
    opening = [Message("system", system)] if system else []
    turns = list(opening)
    write(
        f"{partner.name}\nsystem: {partner.system}\n"
        + (f"yours: {system}\n" if system else "")
        + f"{partner.disclaimer}\n{HELP}\n{prompt}"
    )
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            turns = list(opening)
            write("a new conversation\n")
        elif text.startswith("/"):
            write(f"{text.split()[0]} is not a command; {HELP}\n")
        elif text:
            turns = _exchange(partner, [*turns, Message("user", text)], write)
        write(prompt)


def _exchange(partner: Partner, turns: list[Message], write: Write) -> list[Message]:
    """Return the turns with the reply, or without the last turn where the partner refused it."""
    pieces: list[str] = []
    try:
        for piece in partner.reply(turns):
            pieces.append(piece)
            write(piece)
    except RefusedError as err:
        print(f"medray: {err}", file=sys.stderr)
        return turns[:-1]
    write("\n")
    return [*turns, Message("assistant", "".join(pieces))]
