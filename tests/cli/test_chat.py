"""`medray chat`: what is typed, what is shown, and what whoever answers reads."""

import io
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from support import tiny
from support.fake_chat import WARNING, Service, listening

from medray import cli
from medray.cli import chat
from medray.client import Client, RefusedError
from medray.errors import ServingError
from medray.registry.registry import Registry
from medray.serving import auth
from medray.serving.auth import Refusal
from medray.serving.service import TextPiece
from medray.types import DISCLAIMER, Message, Sampling, gather

ASK = [{"role": "user", "content": "What is asthma?"}]


class Partner:
    """Answers with how many turns it read, and remembers them."""

    name, system, disclaimer = "adviser@1", "Be careful.", "Not a doctor."

    def __init__(self) -> None:
        self.read: list[list[Message]] = []

    def say(self, messages: list[Message]) -> Generator[str, None, None]:
        self.read.append(messages)
        if messages[-1].content == "refuse":
            raise RefusedError("429 too many texts are waiting")
        yield f"{len(messages)} "
        yield "turns"


def talk(partner: Partner, *lines: str, system: str | None = None) -> str:
    shown: list[str] = []
    chat.converse(partner, lines, shown.append, system=system)
    return "".join(shown)


def test_turns_add_up_until_a_reset_and_end_at_quit() -> None:
    partner = Partner()
    shown = talk(partner, "one", "", "two", "/reset", "three", "/quit", "four")
    assert [[turn.content for turn in read] for read in partner.read] == [
        ["one"],
        ["one", "1 turns", "two"],
        ["three"],
    ]
    assert [turn.role for turn in partner.read[1]] == ["user", "assistant", "user"]
    assert shown.endswith("1 turns\n3 turns\na new conversation\n1 turns\n")


def test_the_system_prompt_and_the_disclaimer_come_first_and_ones_own_with_every_turn() -> None:
    partner = Partner()
    shown = talk(partner, "one", "/reset", "two", system="Be brief.")
    for part in ("adviser@1", "Be careful.", "Be brief.", "Not a doctor.", "/reset", "/quit"):
        assert part in shown.partition("2 turns")[0]
    assert [read[0] for read in partner.read] == [Message("system", "Be brief.")] * 2


def test_a_refused_turn_is_told_and_forgotten_and_a_wrong_command_is_no_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    partner = Partner()
    shown = talk(partner, "one", "refuse", "/restart now", "two")
    assert [turn.content for turn in partner.read[-1]] == ["one", "1 turns", "two"]
    assert "429 too many texts" in capsys.readouterr().err
    assert "/restart is no command; /reset begins anew" in shown


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command with lines on its standard input."""

    def run(lines: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        status = cli.main(["chat", *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.mark.document(
    "003",
    "a chat in the terminal with the tuned model",
    where="`medray chat NAME@best`",
)
def test_a_release_is_talked_to_where_it_lies(
    tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    runs = str(tmp_path / "runs")
    release = Registry(runs).publish(tiny.checkpoint("instruct"), "adviser")
    loaded = release.load()
    prompt = loaded.task.prompt([Message("user", "rhythm pressure")], loaded.engine.tokenizer, 5)  # type: ignore[attr-defined]
    (wanted,) = gather(loaded.engine.generate([prompt], Sampling(max_tokens=5)), 1)
    status, shown, _ = typed(
        "rhythm pressure\n/quit\n", "adviser", "--storage-path", runs, "--max-tokens", "5"
    )
    assert status == 0
    assert shown == f"adviser@1\nsystem: the study of\n{DISCLAIMER}\n{chat.HELP}\n{wanted.text}\n"
    assert typed("", "adviser", "--storage-path", runs, "--model", "x")[0] == 1


def test_a_release_that_does_not_talk_is_refused(
    tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    runs = str(tmp_path / "runs")
    Registry(runs).publish(tiny.checkpoint(), "cancer")
    status, _, told = typed("a\n", "cancer@1", "--storage-path", runs)
    assert status == 1
    assert "cancer@1: its task 'classification' does not talk" in told


def test_a_service_is_talked_to_with_its_token(
    tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    service = Service()
    (tmp_path / "token").write_text("right\n")
    with listening(service, frozenset({auth.digest("right")})) as url:
        asked = ["--token-file", str(tmp_path / "token"), "--model", "adviser"]
        status, shown, _ = typed(
            "What?\nWhy?\n/quit\n", url, *asked, "--system", "Be brief.", "--max-tokens", "9"
        )
        assert status == 0
        assert "adviser@3\nsystem: Be careful.\nyours: Be brief.\n" in shown
        assert shown.count(f"Asthma is common.\n\n{WARNING}\n") == 2
        _, second = service.requests
        assert [message.role for message in second[1].messages] == [
            "system",
            "user",
            "assistant",
            "user",
        ]
        assert second[1].max_tokens == 9
        assert typed("What?\n", url)[0] == 1
        assert "401" in typed("What?\n", url)[2]
        status, _, told = typed("What?\n", url, "--token-file", str(tmp_path / "token"))
        assert status == 1
        assert "name one with --model" in told


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
        said = [next(pieces)]
        with pytest.raises(StopIteration) as end:
            while True:
                said.append(next(pieces))
        assert "".join(said) == whole.text
        assert len(said) == 3
        assert end.value.value == whole
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
