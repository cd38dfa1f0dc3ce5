import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, since setuptools leaves a folder `build` there and packs its content the
    next time."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "medray", source / "medray", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "-q", "-o", str(folder / "dist"), str(source)],
        check=True,
    )
    (wheel,) = (folder / "dist").glob("medray-*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone_and_works_from_any_folder(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path / "site")
        program = archive.getinfo("medray/serving/haproxy.sh")
    assert program.external_attr >> 16 & 0o111 == 0o111  # pip keeps these bits
    files = [
        path
        for path in (ROOT / "medray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sorted(names) == sorted(
        f"medray/{path.relative_to(ROOT / 'medray').as_posix()}" for path in files
    )
    script = (
        "import medray, medray.plugins as p; print(medray.__file__); "
        "print(p.names('data.formats'), p.names('training.strategies'))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert str(tmp_path / "site") in process.stdout
    assert "raw_abstracts" in process.stdout
    assert "torch" in process.stdout


@pytest.mark.slow
def test_the_client_installs_nothing_but_medray(wheel: Path, tmp_path: Path) -> None:
    """Without an index there is nowhere to take a dependency from."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-index", f"{wheel}[client]"], check=True
    )
    script = (
        "import sys, medray; medray.Client(), medray.AsyncClient(); from importlib import metadata;"
        "print(sorted(one.name for one in metadata.distributions() if one.name != 'setuptools'))"
    )
    run = subprocess.run(
        [python, "-I", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == "['medray', 'pip']"
    command = subprocess.run(
        [python.with_name("medray"), "--version"], capture_output=True, text=True
    )
    assert command.returncode == 1
    assert "pip install 'medray[predict]'" in command.stderr
    assert "Traceback" not in command.stderr
