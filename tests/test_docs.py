import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blocks
import click
import documents
import jsonschema
import messages
import pages
import promises
import pytest
import site_pages as site
import typer
import yaml
from ray.dashboard.modules.job.cli import submit as ray_submit

from medray import plugins
from medray.cli.main import app
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.errors import MedrayError

ROOT = Path(__file__).parent.parent


def test_every_relative_link_in_the_docs_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_configuration_page_names_every_section_of_a_study() -> None:
    page = (ROOT / "docs" / "guides" / "configuration.md").read_text(encoding="utf-8")
    for section in StudyConfig.model_fields:
        assert f"`{section}" in page, section


def test_the_data_page_names_every_format() -> None:
    page = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    assert [name for name in plugins.names("data.formats") if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", pages.render(), ids=lambda path: path.name)
def test_a_generated_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages.render()[path], (
        "python tests/pages.py writes it"
    )


@pytest.mark.parametrize(
    "study", sorted((ROOT / "jobs" / "studies").glob("*.yaml")), ids=lambda path: path.name
)
def test_a_study_that_ships_names_its_schema_and_fits_it(study: Path) -> None:
    text = study.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={pages.SCHEMA.name}\n")
    schema = json.loads(pages.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(text), schema)


def test_a_key_that_a_study_does_not_have_does_not_fit_the_schema() -> None:
    schema = json.loads(pages.SCHEMA.read_text(encoding="utf-8"))
    study = yaml.safe_load((ROOT / "jobs" / "studies" / "quickstart.yaml").read_text("utf-8"))
    study["data"]["format"]["colums"] = ["a"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(study, schema)


def quoted_messages(page: str) -> list[str]:
    """The messages in the first column of a page's tables; those in brackets are not medray's."""
    first = re.findall(r"^\| `([^`]+)`(?= \||(?! \(from|` in))[^|]*\|", page, re.MULTILINE)
    return [message for message in first if " " in message]


def test_every_message_of_the_troubleshooting_page_is_one_of_medrays() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes = quoted_messages(page)
    assert len(quotes) > 20
    assert [message for message in quotes if not messages.exists(message)] == []
    assert not messages.exists("the cluster's Serve sleeps at")


def test_every_block_of_the_docs_says_how_it_is_checked() -> None:
    entries = [block for page in blocks.pages() for block in blocks.blocks(page)]
    assert [
        f"{block.page.name}: {block.mark or 'no mark'}: {block.code[:60]}"
        for block in entries
        if not block.is_known
    ] == []
    assert sum(block.mark.startswith("ci:") for block in entries) > 10


PAGES_THAT_TRAIN = [
    page for page in blocks.pages() if any(item.is_slow for item in blocks.blocks(page))
]


@pytest.mark.slow
@pytest.mark.tutorial
@pytest.mark.timeout(900)  # .ci/run grants its last slow test as much
@pytest.mark.parametrize("page", PAGES_THAT_TRAIN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_that_trains_run_in_order(page: Path, tmp_path: Path) -> None:
    for name in (".venv", "jobs", "serve_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("build", "runs"):
        (tmp_path / name).mkdir()
    for block in blocks.blocks(page):
        if block.mark == "ci: run" or block.is_slow:
            assert blocks.failure(block, tmp_path) is None, block.code


def test_the_navigation_lists_every_page() -> None:
    pages_there = {path.relative_to(ROOT / "docs").as_posix() for path in site.DOCS.rglob("*.md")}
    records = {page for page in pages_there if re.match(r"decisions/\d", page)}
    assert site.in_navigation() == pages_there - records


def test_a_link_out_of_docs_becomes_its_text_and_comments_go() -> None:
    text = "<!-- ci: run -->\nSee [A](../README.md), [B](guides/b.md#c). <!-- shown by: x -->\n"
    assert site.for_site(text, Path("a.md")) == "\nSee A, [B](guides/b.md#c).\n"


def test_every_promise_of_the_docs_names_what_shows_it() -> None:
    entries = promises.promises()
    assert len(entries) > 30
    assert [(promise.text, promise.lacking) for promise in entries if promise.lacking] == []


def test_a_promise_that_nothing_shows_would_be_found() -> None:
    page = (
        "<!-- promises -->\n\n- One\n  in two lines. <!-- shown by: "
        "tests/test_docs.py::test_of_nothing -->\n- Two.\n"
        "- Three. <!-- shown by: tests/test_docs.py, make test -->\n\n- Not a promise.\n"
    )
    read = list(promises.read(page, "page.md"))
    assert [promise.text for promise in read] == ["- One   in two lines.", "- Two.", "- Three."]
    assert [promise.lacking for promise in read] == [
        "names tests/test_docs.py::test_of_nothing, which is not there",
        "names no test",
        None,
    ]


def test_the_page_of_the_five_systems_is_what_the_tests_say() -> None:
    rows = documents.rows()
    assert documents.mistakes(rows) == []
    page = documents.PAGE.read_text(encoding="utf-8")
    assert page == documents.render(rows), "python tests/documents.py writes it"
    for path in re.findall(r"`((?:jobs|medray|cluster)/[\w./]+)`", page):
        assert (ROOT / path).exists(), path


def test_a_promise_of_a_document_without_a_row_or_with_two_and_a_row_of_none_are_found() -> None:
    marks = (
        ("000", "answers are streamed while they are generated"),
        ("004", "PubMedQA, labelled"),
        ("004", "all is well"),
    )
    source = "".join(
        (
            f"@pytest.mark.document({number!r}, {promise!r}, where='`x`', how='by hand')\ndef "
            f"test_{at}(): ...\n"
        )
        for at, (number, promise) in enumerate((*marks, marks[0]))
    )
    rows = list(documents.read(source, "tests/test_x.py"))
    assert rows[0] == documents.Row(
        *marks[0], "`x`", "kept otherwise: by hand ([test](../tests/test_x.py))"
    )
    entries = documents.mistakes(rows)
    assert "000: 2 rows: answers are streamed while they are generated" in entries
    assert "004: not a promise: all is well" in entries
    assert "001: no row: a Docker image" in entries
    assert not any("PubMedQA, labelled" in mistake for mistake in entries)


def commands(page: str, program: str = "medray") -> Iterator[str]:
    """Yield each call of a program on a page: from lines of shell, and from text between
    backquotes."""
    call = re.compile(rf"(?:\$ |[A-Z_]+=\S+ )*({program} .*)")
    for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE):
        if kind in ("bash", "sh", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            yield from (match[1] for line in lines if (match := call.match(line.strip())))
    outside = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    yield from (
        match[1] for span in re.findall(r"`([^`\n]+)`", outside) if (match := call.match(span))
    )


def wrong(call: str) -> str | None:
    """Return why the command line would refuse a call: an unknown command or option. Placeholders
    stand for values."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(re.split(r"\s[|&;>]", call)[0], comments=True)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"{call}: there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    options = {
        "--help",
        *(
            name
            for parameter in command.params
            for name in parameter.opts + parameter.secondary_opts
        ),
    }
    unknown = [
        word.partition("=")[0]
        for word in words
        if word.startswith("-") and word.partition("=")[0] not in options
    ]
    return f"{call}: has no option {unknown[0]}" if unknown else None


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_is_one_that_medray_has(page: Path) -> None:
    assert [
        reason for call in commands(page.read_text(encoding="utf-8")) if (reason := wrong(call))
    ] == []


def test_a_command_that_does_not_exist_would_be_found() -> None:
    page = (
        "Say `medray data FOLDER`, or `medray study --resume`:\n\n```bash\nRAY_ADDRESS=x medray "
        "study S.yaml \\\n  --resum | tee log\n```\n"
    )
    assert [wrong(call) for call in commands(page)] == [
        "medray study S.yaml    --resum | tee log: has no option --resum",
        "medray data FOLDER: there is no command 'FOLDER'",
        None,
    ]
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 80


WRONG_CALL: Any = typer.BadParameter.__base__  # typer brings a click of its own


def refused_job(call: str) -> str | None:
    """Return why Ray, the script or its study would refuse a `ray job submit`, without a
    cluster."""
    words = shlex.split(call, comments=True)[3:]
    if "--" not in words:
        return f"{call}: submits nothing"
    to_ray, (python, script, *arguments) = (
        words[: words.index("--")],
        words[words.index("--") + 1 :],
    )
    if python != "python" or not (ROOT / script).is_file():
        return f"{call}: there is no script {script}"
    name = re.findall(r'main\(\["(\w+)", \*sys.argv', (ROOT / script).read_text(encoding="utf-8"))
    if len(name) != 1:
        return f"{call}: {script} gives its arguments to no command of medray"
    medray: Any = typer.main.get_command(app)
    try:
        ray_submit.make_context("submit", [*to_ray, "--", python, script])
        options = medray.commands[name[0]].make_context(name[0], [*arguments]).params
        if name[0] == "study" and (ROOT / arguments[0]).is_file():
            load_study(
                [ROOT / arguments[0]],
                [word for word in arguments if "=" in word and not word.startswith("-")],
            )
    except (click.UsageError, WRONG_CALL, MedrayError) as err:
        return f"{call}: {err}"
    return None if options else f"{call}: {name[0]} parses nothing of it"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "jobs").glob("*.py"))], ids=lambda page: page.name
)
def test_every_job_of_the_docs_is_one_that_ray_and_its_script_would_take(page: Path) -> None:
    jobs = commands(page.read_text(encoding="utf-8"), "ray job submit")
    assert [reason for call in jobs if (reason := refused_job(call))] == []


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ("--working-dir . -- python jobs/studies.py S.yaml", "there is no script jobs/studies.py"),
        ("--working-dirs . -- python jobs/study.py S.yaml", "No such option '--working-dirs'"),
        ("--working-dir . -- python jobs/study.py S.yaml --resum", "No such option: --resum"),
        ("--working-dir . -- python jobs/predict.py cancer@best", "Missing parameter: input"),
        (
            "--working-dir . -- python jobs/study.py jobs/studies/cancer.yaml data.formt.path=X",
            "data.formt: unknown",
        ),
        ("--working-dir . python jobs/study.py S.yaml", "submits nothing"),
        ("--working-dir . -- python jobs/quickstart.py", "gives its arguments to no command"),
    ],
)
def test_a_job_that_would_be_refused_is_found(job: str, reason: str) -> None:
    (call,) = commands(
        f"```bash\nRAY_AUTH_MODE=token ray job submit {job}\n```\n", "ray job submit"
    )
    assert reason in str(refused_job(call))


def test_jobs_are_found_in_blocks_and_in_sentences() -> None:
    pages = {
        page.name: len(list(commands(page.read_text(encoding="utf-8"), "ray job submit")))
        for page in PAGES
    }
    assert {name: number for name, number in pages.items() if number} == {
        "predict.md": 1,
        "studies.md": 1,
    }


def test_the_page_on_answers_turns_the_configuration_of_two_releases_into_one_of_your_own(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "guides" / "instruct.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^sed -e .*?> runs/serve\.yaml$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "runs").mkdir()
    (tmp_path / "serve_configs").symlink_to(ROOT / "serve_configs")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    (application,) = yaml.safe_load((tmp_path / "runs" / "serve.yaml").read_text())["applications"]
    assert application["args"]["releases"] == ["questions@best"]
    assert application["args"]["storage_path"] == f"{tmp_path}/runs"
    assert [deployment["name"] for deployment in application["deployments"]] == [
        "Ingress",
        "questions@best",
    ]
    assert application["deployments"][1]["autoscaling_config"]["max_replicas"] == 4
