"""Tests of `medray chat`: its input, its output and the messages that the model receives."""

import asyncio
import io
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from support import tiny
from support.fake_chat import WARNING, Service, listening

from medray import cli
from medray.cli import chat
from medray.client import Client, RefusedError
from medray.client.asynchronous import AsyncClient
from medray.errors import ServingError
from medray.registry.registry import Registry
from medray.serving import auth
from medray.serving.refusals import Refusal
from medray.serving.service import TextPiece
from medray.types import DISCLAIMER, Message, Sampling, gather

ASK = [{"role": "user", "content": "What is asthma?"}]


class Partner:
    """Replies with the number of turns that it received, and records them."""

    name, system, disclaimer = "adviser@1", "Be careful.", "Not a doctor."

    def __init__(self) -> None:
        self.turns: list[list[Message]] = []

    def reply(self, messages: list[Message]) -> Generator[str, None, None]:
        self.turns.append(messages)
        if messages[-1].content == "refuse":
            raise RefusedError("429 too many texts are waiting")
        yield f"{len(messages)} "
        yield "turns"


def talk(partner: Partner, *lines: str, system: str | None = None) -> str:
    output: list[str] = []
    chat.converse(partner, lines, output.append, system=system)
    return "".join(output)


def test_turns_add_up_until_a_reset_and_end_at_quit() -> None:
    partner = Partner()
    output = talk(partner, "one", "", "two", "/reset", "three", "/quit", "four")
    assert [[turn.content for turn in read] for read in partner.turns] == [
        ["one"],
        ["one", "1 turns", "two"],
        ["three"],
    ]
    assert [turn.role for turn in partner.turns[1]] == ["user", "assistant", "user"]
    assert output.endswith("1 turns\n3 turns\na new conversation\n1 turns\n")


def test_the_system_prompt_and_the_disclaimer_come_first_and_the_users_own_with_every_turn() -> (
    None
):
    partner = Partner()
    output = talk(partner, "one", "/reset", "two", system="Be brief.")
    for part in ("adviser@1", "Be careful.", "Be brief.", "Not a doctor.", "/reset", "/quit"):
        assert part in output.partition("2 turns")[0]
    assert [read[0] for read in partner.turns] == [Message("system", "Be brief.")] * 2


def test_a_refused_turn_is_reported_and_dropped_and_a_wrong_command_is_no_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    partner = Partner()
    output = talk(partner, "one", "refuse", "/restart now", "two")
    assert [turn.content for turn in partner.turns[-1]] == ["one", "1 turns", "two"]
    assert "429 too many texts" in capsys.readouterr().err
    assert "/restart is not a command; /reset starts a new conversation" in output


@pytest.fixture
def chat_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command with lines on its standard input."""

    def run(lines: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        status = cli.main(["chat", *arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.mark.document(
    "003",
    "a chat in the terminal with the tuned model",
    where="`medray chat NAME@best`",
)
def test_a_release_chats_in_this_process(
    tmp_path: Path, chat_command: Callable[..., tuple[int, str, str]]
) -> None:
    runs = str(tmp_path / "runs")
    release = Registry(runs).publish(tiny.checkpoint("instruct"), "adviser")
    model = release.load()
    prompt = model.task.prompt([Message("user", "rhythm pressure")], model.engine.tokenizer, 5)  # type: ignore[attr-defined]
    (reply,) = gather(model.engine.generate([prompt], Sampling(max_tokens=5)), 1)
    status, output, _ = chat_command(
        "rhythm pressure\n/quit\n", "adviser", "--storage-path", runs, "--max-tokens", "5"
    )
    assert status == 0
    assert output == f"adviser@1\nsystem: the study of\n{DISCLAIMER}\n{chat.HELP}\n{reply.text}\n"
    assert chat_command("", "adviser", "--storage-path", runs, "--model", "x")[0] == 2


def test_a_release_that_does_not_chat_is_refused(
    tmp_path: Path, chat_command: Callable[..., tuple[int, str, str]]
) -> None:
    runs = str(tmp_path / "runs")
    Registry(runs).publish(tiny.checkpoint(), "cancer")
    status, _, errors = chat_command("a\n", "cancer@1", "--storage-path", runs)
    assert status == 1
    assert "cancer@1: its task 'classification' does not chat" in errors


def test_a_service_chats_given_its_token(
    tmp_path: Path, chat_command: Callable[..., tuple[int, str, str]]
) -> None:
    service = Service()
    (tmp_path / "token").write_text("right\n")
    with listening(service, frozenset({auth.digest("right")})) as url:
        options = ["--token-file", str(tmp_path / "token"), "--model", "adviser"]
        status, output, _ = chat_command(
            "What?\nWhy?\n/quit\n", url, *options, "--system", "Be brief.", "--max-tokens", "9"
        )
        assert status == 0
        assert "adviser@3\nsystem: Be careful.\nyours: Be brief.\n" in output
        assert output.count(f"Asthma is common.\n\n{WARNING}\n") == 2
        _, second = service.requests
        assert [message.role for message in second[1].messages] == [
            "system",
            "user",
            "assistant",
            "user",
        ]
        assert second[1].max_tokens == 9
        assert chat_command("What?\n", url)[0] == 1
        assert "401" in chat_command("What?\n", url)[2]
        status, _, errors = chat_command("What?\n", url, "--token-file", str(tmp_path / "token"))
        assert status == 1
        assert "name one with --model" in errors


def test_the_client_chats_whole_and_in_pieces() -> None:
    service = Service()
    with listening(service) as url:
        client = Client(url)
        whole = client.chat(ASK, model="adviser", max_tokens=4, temperature=0.0)
        assert (whole.text, whole.outcome, whole.finish) == (
            f"Asthma is common.\n\n{WARNING}",
            "answered",
            "stop",
        )
        assert (whole.release, whole.version, whole.prompt_tokens, whole.completion_tokens) == (
            "adviser",
            3,
            12,
            5,
        )
        pieces = client.stream(ASK, model="adviser")
        parts = [next(pieces)]
        with pytest.raises(StopIteration) as end:
            while True:
                parts.append(next(pieces))
        assert "".join(parts) == whole.text
        assert len(parts) == 3
        assert end.value.value == whole

        async def parts_of_asyncio() -> list[str]:
            async with AsyncClient(url) as other:
                return [part async for part in other.stream(ASK, model="adviser")]

        assert asyncio.run(parts_of_asyncio()) == parts
        assert client.model("adviser")["system"] == "Be careful."
        service.refusal = Refusal(429, "overloaded", "too many texts are waiting", 1)
        with pytest.raises(RefusedError, match="429 too many"):
            next(client.stream(ASK, model="adviser"))


def test_an_answer_that_breaks_off_is_an_error() -> None:
    with listening(
        Service(TextPiece("Asthma", 1), Refusal(503, "unavailable", "no replica could answer"))
    ) as url:
        pieces = Client(url).stream(ASK, model="adviser")
        assert next(pieces) == "Asthma"
        with pytest.raises(ServingError, match="broke off: no replica could answer"):
            next(pieces)
