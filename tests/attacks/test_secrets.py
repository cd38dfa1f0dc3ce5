"""Secrets in a study, in its addresses and in the environment: none is sent, written, printed or
logged."""

import http.server
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support import run_files, tiny

from medray import cli
from medray.batch.output import Record
from medray.config import addresses
from medray.config.load import dump_settings, public_settings
from medray.data import remote
from medray.errors import ArtifactError, ConfigError, DataError, redaction
from medray.errors.redaction import redact
from medray.reports import html_report, mlflow
from medray.reports.study_data import gather
from medray.runtime import cluster, jobs
from medray.study import preflight, resume
from medray.study.run import Run

AWS_ID, AWS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
GITHUB, HUB = (
    "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "hf_" + "abcdefghijklmnopqrstuvwxyz012345",
)
SIGNED_URL = "https://h.example/x.csv?X-Amz-Algorithm=A&X-Amz-Credential=AKIDCANARY%2Fx&X-Amz-Signature=5ecre7&X-Amz-Date="
PATH, TRACKING = "data.format.path", "mlflow.tracking_uri"
# What is given, what of it is secret, and what may be shown.
STUDIES_WITH_SECRETS = [
    pytest.param(PATH, f"/shared/{HUB}", HUB, "/shared/***", id="H9.0 token of Hugging Face"),
    pytest.param(
        PATH,
        f"s3://{AWS_ID}:{AWS_KEY}@bucket/x",
        AWS_KEY,
        "s3://***:***@bucket/x",
        id="H9.1 key of AWS",
    ),
    pytest.param(
        PATH,
        f"s3://ASIA{AWS_ID[4:]}:{AWS_KEY}@bucket/x",
        AWS_KEY,
        "s3://***:***@bucket/x",
        id="H9.2 temporary key",
    ),
    pytest.param(
        PATH,
        f"s3://minio:{AWS_KEY}@b/x?scheme=http",
        AWS_KEY,
        "s3://minio:***@b/x?scheme=http",
        id="H9.3 another key id",
    ),
    pytest.param(
        PATH,
        "s3://minio:wJ/hunter2/pw@b/x",
        "hunter2",
        "s3://minio:***@b/x",
        id="H9.3 key with slashes",
    ),
    pytest.param(
        PATH,
        "https://user:hunter2pw@host.example/x.csv",
        "hunter2pw",
        "https://user:***@host.example/x.csv",
        id="H9.4",
    ),
    pytest.param(
        PATH,
        "https://user:p@hunter2@host/x.csv",
        "hunter2",
        "https://user:***@host/x.csv",
        id="H9.4 password with @",
    ),
    pytest.param(
        PATH, f"{SIGNED_URL}1", "5ecre7", "https://h.example/x.csv?***", id="H9.5 signed for S3"
    ),
    pytest.param(
        PATH,
        "https://h/x.csv?id=3&sv=2024&se=2026&sig=5ecre7",
        "5ecre7",
        "https://h/x.csv?id=3&***",
        id="H9.5 signed for Azure",
    ),
    pytest.param(
        PATH,
        "https://h/get?u=https%3A%2F%2Fi%2Fx%3Fsig%3D5ecre7",
        "5ecre7",
        "https://h/get?***",
        id="H9.5 address inside",
    ),
    pytest.param(
        TRACKING,
        "http://admin:hunter2pw@mlflow.example",
        "hunter2pw",
        "http://admin:***@mlflow.example",
        id="H9.6 H9b.0",
    ),
    pytest.param(
        TRACKING, f"https://{GITHUB}@h", GITHUB, "https://***@h", id="H9.7 H9b.1 token of GitHub"
    ),
    pytest.param(
        TRACKING, "https://0paque5ecre7@h", "0paque5ecre7", "https://***@h", id="H9.7 any token"
    ),
    pytest.param(
        PATH,
        "abfss://c:AccountKey5ecre7==@a.dfs.net/x",
        "AccountKey5ecre7==",
        "abfss://c:***@a.dfs.net/x",
        id="H9.8 Azure",
    ),
]
# Neither is anything of these a secret.
OPEN = [
    "https://host:8080/files@2024/x.csv?id=5&page=2#top",
    "http://[::1]:8080/a@b",
    "abfss://container@account.dfs.core.windows.net/x",
    "hdfs://user@namenode/x",
    "https://user:${env:PASSWORD}@host/x.csv?sig=${env:SIGNATURE}",
    "https://host/x.csv?${file:/run/secrets/sas}",
    "s3://${env:ID}:${file:/run/secrets/key}@bucket/x",
    "${env:DATA}",
    "sk-learn-classification-study-of-abstracts",
    "Prior authorization: approved. Is the password of the ward, or a token = 5, the key?",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "Prior authorization: basic metabolic panel, authorization: bearer unknown",
    "/data/sk-immunohistochemistry-2024/hf_electroencephalography/x",
]


@pytest.mark.parametrize(("setting", "value", "secret", "output"), STUDIES_WITH_SECRETS)
def test_a_study_that_holds_a_secret_is_not_sent_and_what_is_written_of_it_has_none(
    setting: str, value: str, secret: str, output: str, tmp_path: Path
) -> None:
    study = tiny.study(tmp_path, f"{setting}={value}")
    with pytest.raises(
        ConfigError, match=rf"{setting}: holds what looks like a key or password \("
    ) as error:
        jobs.stage(study, tmp_path, jobs.Parcel())
    assert "${env:NAME}" in str(error.value)
    assert secret not in str(error.value)
    assert not (tmp_path / jobs.STUDY).exists()
    assert (
        yaml.safe_load(dump_settings(study))[setting.split(".")[0]]
        == public_settings(study)[setting.split(".")[0]]
    )
    run = Run.start(study)
    assert (redact(value), redact(output)) == (output, output)
    assert output in (study_text := (run.folder / "study.yaml").read_text())
    assert secret not in study_text
    assert secret not in repr(run)


@pytest.mark.parametrize("text", OPEN)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert not list(redaction.find({"data": {"path": text}}))


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE5ecre7\n-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.5ecre7",
        "sk-proj-5ecre7abcdEFGH12345678ijklMNOP",
        "github_pat_5ecre7abcdefghijklmnop",
        "xoxb-5ecre7-123456",
        "AccountName=a;AccountKey=5ecre7==;EndpointSuffix=x",
        "aws_secret_access_key = 5ecre7",
        "Authorization: Basic 5ecre75ecre7",
    ],
)
def test_known_forms_of_keys_are_taken_out_of_any_text(secret: str) -> None:
    assert "5ecre7" not in redact(f"cannot be read: {secret}, and more")
    assert redact(f"{secret} and more").endswith(" and more")


def test_a_setting_that_is_named_as_a_secret_is_one() -> None:
    settings = {
        "store": {
            "api_key": "plain",
            "password": "${env:PW}",
            "max_tokens": 5,
            "tokens_file": "/x",
        },
        "rows": [{"secret": "s"}],
    }
    assert redaction.redact_settings(settings) == settings | {
        "store": settings["store"] | {"api_key": "***"},
        "rows": [{"secret": "***"}],
    }  # type: ignore[operator]
    assert dict(redaction.find(settings)) == {
        "store.api_key": "a secret",
        "rows.0.secret": "a secret",
    }


# Addresses


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A site that serves rows.jsonl to requests with a password or a signature, and redirects
    /moved/ to another address."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            header = self.headers.get("Authorization", "")
            requests.append((self.headers["Host"], self.path, header))
            is_allowed = (
                header == f"Basic {b64encode(b'user:p@ss/w').decode()}" or "sig=" in self.path
            )
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header(
                    "Location", f"http://localhost:{self.server.server_port}/rows.jsonl?sig=open"
                )  # type: ignore[attr-defined]
            else:
                self.send_response(200 if is_allowed else 401)
            body = rows if is_allowed else b""
            self.send_header("ETag", "one")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    requests: list[tuple[str, str, str]] = []
    rows = tiny.abstracts(tmp_path).read_bytes()
    monkeypatch.setattr(sys.modules[__name__], "REQUESTS", requests)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


REQUESTS: list[tuple[str, str, str]] = []


def test_a_secret_that_is_named_is_put_in_where_the_data_is_read(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("p@ss/w\n")
    monkeypatch.setenv("PASSWORD", "p@ss/w")
    monkeypatch.setenv("WHOLE", f"http://{site}/rows.jsonl?sig=one")
    monkeypatch.setenv("HERE", str(tmp_path / "rows.jsonl"))
    named_files = [
        f"http://user:${{env:PASSWORD}}@{site}/rows.jsonl",
        f"http://user:${{file:{tmp_path / 'key'}}}@{site}/rows.jsonl",
        "${env:WHOLE}",
        f"http://{site}/rows.jsonl?sig=another",
    ]
    places = {remote.pull(address) for address in named_files}
    assert len(places) == 1  # nothing is pulled anew for another password or signature
    assert remote.pull("${env:HERE}") == tmp_path / "rows.jsonl"
    study = tiny.study(tmp_path, f"{PATH}={named_files[0]}")
    preflight.check(study)
    jobs.stage(study, tmp_path, jobs.Parcel())
    assert named_files[0] in (tmp_path / jobs.STUDY).read_text()


def test_a_password_goes_to_its_own_host_alone(site: str) -> None:
    remote.pull(f"http://user:p%40ss%2Fw@{site}/moved/rows.jsonl")
    (first, second) = REQUESTS
    assert first[2].startswith("Basic ")
    assert second == (f"localhost:{site.split(':')[1]}", "/rows.jsonl?sig=open", "")


def test_no_error_about_an_address_repeats_what_is_secret_in_it(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "hunter2canary")
    for address in (
        f"http://user:hunter2canary@{site}/rows.jsonl",
        f"http://user:${{env:CANARY}}@{site}/rows.jsonl",
        f"http://{site}/${{env:CANARY}}/rows.jsonl",
        f"http://{site}/rows.jsonl?token=hunter2canary with a blank",
        f"http://{site}x/rows.jsonl?token=hunter2canary",
        "s3://minio:hunter2canary/%zz@b ucket",
        "s3://minio:${env:CANARY}@",
        "http://[name:hunter2canary@h/x.csv",
        "s3://[name:hunter2canary@h/x.csv",
        "gs://hunter2:hunter2canary@bucket:x/y",
    ):
        with pytest.raises((ConfigError, DataError)) as error:
            remote.pull(address)
        assert "hunter2canary" not in str(error.value), address
        assert error.value.__cause__ is None or "hunter2canary" not in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "https://h/x.csv?${env:NOT_SET_HERE}",
            r"the environment variable NOT_SET_HERE is not set; set it where the study runs",
        ),
        (
            "https://h/x.csv?${file:/nowhere/key}",
            r"the file /nowhere/key cannot be read: No such file or directory; it must be there",
        ),
        (
            "https://h/x.csv?id=3&***",
            (
                r"was stored without its secret \(\*\*\*\); give the whole address again "
                r"\(data.format.path=ADDRESS\)"
            ),
        ),
        ("https://user:***@h/x.csv", r"was stored without its secret"),
    ],
)
def test_a_missing_secret_is_reported_before_a_study_starts(
    address: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"data.format: .*{message}"):
        preflight.check(tiny.study(tmp_path, f"{PATH}={address}"))
    with pytest.raises(ConfigError, match=message), addresses.resolve(address):
        pass


def test_a_reference_to_a_secret_is_refused_where_it_is_not_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError,
        match=(
            r"storage_path: \$\{env:RUNS\}: only data.format, mlflow.tracking_uri and the token of "
            r"a reference may refer to a secret"
        ),
    ):
        preflight.check(tiny.study(tmp_path, "storage_path=${env:RUNS}"))
    monkeypatch.setattr(preflight.util, "find_spec", lambda name: object())
    with pytest.raises(
        ConfigError,
        match=r"mlflow.tracking_uri: .*the environment variable NOT_SET_HERE is not set",
    ):
        preflight.check(tiny.study(tmp_path, "mlflow.tracking_uri=https://u:${env:NOT_SET_HERE}@h"))


def test_a_prompt_or_base_that_a_trial_would_be_given_without_its_secret_is_refused(
    tmp_path: Path,
) -> None:
    study = tiny.choice_study(tmp_path, "task.prompt='{text} See https://h/x?key=5ecre7'")
    with pytest.raises(
        ConfigError,
        match=r"task\.prompt: looks like a key or password \(a signature or token\)",
    ) as error:
        preflight.check(study)
    assert "5ecre7" not in str(error.value)


# Runs


def test_a_renewed_signature_or_another_way_to_give_it_goes_on_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDRESS", f"{SIGNED_URL}3&X-Amz-Security-Token=t")
    study = tiny.study(tmp_path, f"{PATH}={SIGNED_URL}1")
    run = Run.start(study)
    stored_study = (run.folder / "study.yaml").read_text()
    for again in (f"{SIGNED_URL}2", "${env:ADDRESS}", f"{SIGNED_URL}1"):
        run_again = Run.resume(tiny.study(tmp_path, f"{PATH}={again}"))
        assert run_again == run
        assert run_again.settings().data.format.model_dump()["path"] == again
    assert (run.folder / "study.yaml").read_text() == stored_study
    with pytest.raises(
        ConfigError,
        match=(
            r"data\.format\.path was 'https://h.example/x.csv\?\*\*\*' and is "
            r"'https://h.example/y.csv"
        ),
    ):
        Run.resume(tiny.study(tmp_path, f"{PATH}={SIGNED_URL.replace('x.csv', 'y.csv')}1"))
    for before, after in (
        ("https://h/x.csv?id=3&sig=a", "https://h/x.csv?id=4&sig=a"),
        ("s3://u:a@bucket/x", "s3://u:a@other/x"),
        ("abfss://one@h/x?sig=a", "abfss://two@h/x?sig=a"),
    ):
        assert addresses.comparable(before) != addresses.comparable(after)
    # What an earlier medray wrote with its secret is read, goes on, and has none from then on.
    (run.folder / "study.yaml").write_text(
        stored_study.replace("x.csv?***", f"x.csv{SIGNED_URL.partition('x.csv')[2]}9")
    )
    resume.check_settings(Run(run.folder).settings(), study, "here")
    Run.resume(study)
    assert (run.folder / "study.yaml").read_text() == stored_study


def test_the_report_of_a_run_that_an_earlier_medray_wrote_has_no_secret(tmp_path: Path) -> None:
    run = run_files.run(tmp_path)
    settings = run.folder / "study.yaml"
    raw = yaml.safe_load(settings.read_text())
    raw["data"]["format"]["path"] = f"{SIGNED_URL}1"
    settings.write_text(yaml.safe_dump(raw))
    data = gather(Run(run.folder))
    assert "5ecre7" in settings.read_text()
    assert "https://h.example/x.csv?***" in (
        output := html_report.render(html_report.compose(data))
    )
    assert "5ecre7" not in output


def test_a_batch_run_keeps_its_input_without_a_secret() -> None:
    plain = {
        "medray": "1",
        "release": "r",
        "version": 1,
        "content_id": "c",
        "fingerprint": "f",
        "text_columns": (),
        "id_column": None,
    }
    rest = {
        "most_characters": 1,
        "token_budget": 1,
        "precision": "fp32",
        "form": "csv",
        "piece_rows": 1,
    }
    assert Record(input=f"s3://minio:{AWS_KEY}@b/x", **plain, **rest).input == "s3://minio:***@b/x"  # type: ignore[arg-type]


def test_errors_hold_no_secret_in_any_process(tmp_path: Path) -> None:
    err = pickle.loads(pickle.dumps(ArtifactError("https://user:hunter2pw@h/x: cannot be opened")))
    assert str(err) == "https://user:***@h/x: cannot be opened"
    long = "https://user:hunter2pw" + "x" * 100 + "@h"  # shown in part, which ends before the @
    with pytest.raises(ConfigError) as error:
        tiny.study(tmp_path, f"seed={long}")
    assert "hunter2pw" not in str(error.value)
    assert "seed: " in str(error.value)


# What is printed, exported and handed to Ray


def test_commands_print_no_secret(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = dump_settings(tiny.study(tmp_path)).replace(
        str(tmp_path / "rows.jsonl"), f"http://{site}/rows.jsonl?sig=5ecre7canary"
    )
    (tmp_path / "study.yaml").write_text(settings)
    assert "5ecre7canary" in settings
    password = "mlflow.tracking_uri=http://admin:hunter2pw@127.0.0.1:1"
    for status, command in (
        (1, ["study", "study.yaml", password, "--dry-run"]),  # MLflow is not installed here
        (0, ["study", "study.yaml", "--dry-run"]),
        (0, ["plan", "study.yaml", password]),
        (1, ["plan", "study.yaml", f"{PATH}=http://{site}/missing.jsonl?token=5ecre7canary"]),
        (1, ["study", "study.yaml", "--resume", f"{PATH}=http://u:5ecre7canary@{site}/rows.jsonl"]),
        (1, ["submit", "study.yaml", password, "--address", "http://admin:hunter2pw@127.0.0.1:1"]),
        (
            1,
            [
                "data",
                "convert",
                f"name=jsonl,path=http://u:5ecre7canary@{site}/rows.jsonl",
                "name=jsonl,path=out.jsonl",
            ],
        ),
        (1, ["study", "study.yaml", "seed=http://admin:hunter2pw@h"]),
    ):
        exit_status = cli.main(command)
        output = capsys.readouterr()
        assert exit_status == status, (command, output.err)
        assert "5ecre7canary" not in output.out + output.err, command
        assert "hunter2pw" not in output.out + output.err, command
    logging.getLogger("urllib3").warning("connecting to %s", f"http://{site}/x?sig=5ecre7canary")
    assert capsys.readouterr().err == f"connecting to http://{site}/x?***\n"


def test_a_traceback_has_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise RuntimeError("https://user:hunter2pw@h/x is not what was expected")

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("medray.cli.study.load", fail)
    with pytest.raises(RuntimeError) as error:
        cli.main(["study", "study.yaml"])
    sys.excepthook(error.type, error.value, error.tb)
    output = capsys.readouterr().err
    assert output.startswith("Traceback")
    assert output.endswith("RuntimeError: https://user:***@h/x is not what was expected\n")


def test_requests_to_mlflow_carry_its_password_and_its_errors_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RefusedError(Exception): ...

    class Client:
        def __init__(self, tracking_uri: str, registry_uri: str) -> None:
            requests.append((tracking_uri, registry_uri))

        def get_experiment_by_name(self, name: str) -> None:
            raise RefusedError(
                f"API request to {requests[-1][0]}/api failed for admin, hunter2pw: no answer"
            )

    requests: list[tuple[str, str]] = []
    root, exceptions = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    root.__spec__ = sys.modules["json"].__spec__
    root.MlflowClient, exceptions.MlflowException = Client, RefusedError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", root)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setenv("MLFLOW_PW", "hunter2pw")
    data = gather(run_files.run(tmp_path))
    for uri in ("http://admin:hunter2pw@127.0.0.1:1", "http://admin:${env:MLFLOW_PW}@127.0.0.1:1"):
        with pytest.raises(
            ArtifactError, match=r"MLflow at http://admin:.*: API request to"
        ) as error:
            mlflow.log(data, uri, mark="m", files=[], release=None)
        assert "hunter2pw" not in str(error.value)
        assert error.value.__cause__ is None
    assert requests == [("http://admin:hunter2pw@127.0.0.1:1",) * 2] * 2


def test_a_secret_of_the_environment_is_not_handed_to_ray(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror:hunter2pw@hub.example")
    assert "HF_ENDPOINT" not in cluster.job_environment(None)
    assert "HF_ENDPOINT holds a secret and is not passed on" in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert cluster.job_environment(None)["HF_ENDPOINT"] == "https://hub.example"


CANARIES = {
    "HF_TOKEN": "hf_HFCANARYaaaaaaaaaaaaaaaaaaaaaaaa",
    "AWS_SECRET_ACCESS_KEY": "AWSCANARYsecret",
    "AWS_ACCESS_KEY_ID": "AKIACANARYAAAAAAAAAA",
    "AWS_SESSION_TOKEN": "SESSIONCANARY",
    "MY_PASSWORD": "ENVCANARY4711",
}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_whole_study_leaves_no_secret_in_runs_releases_caches_logs_of_ray_or_output(
    site: str, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(
        dump_settings(
            tiny.study(tmp_path, "train.epochs=1", "publish={name: tiny, allow_worse: true}")
        ).replace(str(tmp_path / "rows.jsonl"), f"http://{site}/rows.jsonl?sig=SIGNATURECANARY")
    )
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "home").mkdir()
    rays = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # paths of sockets must be short
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))
    } | CANARIES
    environment |= {
        "RAY_TMPDIR": str(rays),
        "HOME": str(tmp_path / "home"),
        "MEDRAY_CACHE": str(tmp_path / "cache"),
    }

    def study(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "medray.cli", "study", "study.yaml", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )

    try:
        outcome = study()
        assert outcome.returncode == 0, outcome.stderr
        assert "published: tiny@1" in outcome.stdout
        assert (
            "data.format.path: contains a signature or token, which is used but not stored, so "
            "--resume needs it again"
        ) in outcome.stderr
        (run,) = (tmp_path / "runs" / "tiny").iterdir()
        assert f"http://{site}/rows.jsonl?***" in (run / "study.yaml").read_text()
        for settings in (tmp_path / "runs").rglob("manifest.json"):
            assert f"http://{site}/rows.jsonl?***" in settings.read_text()
        logs = [
            path
            for path in rays.rglob("runtime_env_agent.log")
            if "Successfully created" in path.read_text()
        ]
        assert logs, "the log of Ray's agent is not where it is looked for"
        (tmp_path / "study.yaml").unlink()
        shutil.copyfile(run / "study.yaml", tmp_path / "study.yaml")
        again = study("--resume")
        assert again.returncode == 1
        assert (
            f"http://{site}/rows.jsonl?***: was stored without its secret (***); give the "
            "whole address again"
        ) in again.stderr
        leaks = [
            f"{path}: {canary}"
            for root in (tmp_path, rays)
            for path in root.rglob("*")
            if path.is_file() and not path.is_symlink()
            for canary in ("SIGNATURECANARY", *CANARIES.values())
            if canary.encode() in path.read_bytes()
        ]
        assert leaks == []
        assert not [
            canary
            for canary in ("SIGNATURECANARY", *CANARIES.values())
            if canary in outcome.stdout + outcome.stderr + again.stderr
        ]
    finally:
        shutil.rmtree(rays, ignore_errors=True)
