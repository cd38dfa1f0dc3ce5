"""`medray serve` as a user runs it, in a process of its own."""

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.exceptions import RayError
from support import tiny

from medray import cli
from medray.client import Client
from medray.errors import ServingError
from medray.registry.registry import Registry
from medray.runtime.cluster import free_port
from medray.serving.app import start_serve, url_of


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("command")
    registry = Registry(str(place / "runs"))
    registry.publish(tiny.checkpoint(), "cancer")
    registry.point("cancer", "best", 1)
    return place / "runs"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.document(
    "000",
    "one command exposes a REST API at a port of choice",
    where="`medray serve NAME@best --port 8082`",
)
def test_serve_answers_follows_a_promotion_and_ends_cleanly_at_ctrl_c(storage: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "medray.cli",
        "serve",
        "cancer@best",
        "--port",
        str(port),
        "--storage-path",
        str(storage),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        end = time.monotonic() + 90
        while True:
            try:
                response = client.classify(["tumour in the lung", "fever"])
                break
            except ServingError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.5)
        assert (response.release, response.version, len(response.predictions)) == ("cancer", 1, 2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs") as page:
            assert page.status == 200
        Registry(str(storage)).publish(
            Registry(str(storage)).resolve("cancer@1").folder(), "cancer"
        )
        job = [
            sys.executable,
            "jobs/promote.py",
            "cancer@2",
            "best",
            "--url",
            client.url,
            "--storage-path",
            str(storage),
        ]
        result = subprocess.run(
            job, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=90
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == "cancer@2 is cancer@best, and every replica serves it"
        assert client.classify(["fever"]).version == 2
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"curl http://127.0.0.1:{port}/v1/classify" in output
    with pytest.raises(ServingError, match="does not answer"):
        client.models()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["serve", "cancer@best", "--host", "0.0.0.0"],
            "0.0.0.0: other machines can reach this address; set tokens_file",
        ),
        (["serve", "cancer@bets"], "has no alias 'bets'; allowed: best; did you mean 'best'"),
        (["serve", "cancer@best", "cancer@best"], "is listed twice; list it once"),
        (["serve", "cancer@best", "--prefix", "{x}"], "prefix /{x}: is not a path of letters"),
        (
            ["serve", "cancer@best", "--host", "192.0.2.1", "--open-to-all"],
            "192.0.2.1:8000: Cannot assign requested address; give another",
        ),
        (["promote", "cancer@9", "best", "--no-wait"], "'cancer' has versions 1"),
        (
            ["rollback", "cancer", "never-set", "--no-wait"],
            "there is no earlier version to go back to",
        ),
    ],
)
def test_a_command_that_cannot_work_reports_why_before_it_starts_anything(
    storage: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--storage-path", str(storage)]) == 1
    assert message in capsys.readouterr().err


def test_without_waiting_the_alias_is_written_and_no_service_is_called(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["promote", "cancer@1", "next", "--no-wait", "--storage-path", str(storage)]) == 0
    )
    assert capsys.readouterr().out.strip() == "cancer@1 is cancer@next"
    assert tiny.aliases(Registry(str(storage)), "cancer")["next"] == 1


def test_an_address_of_ipv6_has_brackets_in_a_url() -> None:
    assert url_of("::1", 8000, "/cancer") == "http://[::1]:8000/cancer"
    assert url_of("127.0.0.1", 8000) == "http://127.0.0.1:8000"


CRASH = "  File one\nRuntimeError: HAProxy crashed during startup: "


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RayError(
                f"{CRASH}[NOTICE]   (1) : version\n[ALERT]    (1) : cannot bind socket (Address "
                "already in use)\n[ALERT]    (1) : main() Exiting."
            ),
            "cannot bind socket (Address already in use)",
        ),
        (RayError(f"{CRASH}HAProxy: x.cfg: the log: is missing"), "HAProxy: x.cfg: the log: is"),
        (TimeoutError("HTTP proxies not available after 60s."), "HTTP proxies not available"),
    ],
)
def test_a_proxy_that_does_not_start_ends_in_one_sentence(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**options: Any) -> None:
        raise error

    monkeypatch.setattr(serve, "start", start)
    with pytest.raises(ServingError) as result:
        start_serve("127.0.0.1", 8000, timeout_s=60, variables={})
    assert str(result.value).startswith(f"port 8000: the proxy did not start: {reason}")
    assert str(result.value).endswith("; start it again, or give another --port")
    assert "\n" not in str(result.value)
