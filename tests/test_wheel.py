import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone_and_works_from_any_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-q", "-o", str(tmp_path / "dist"), str(ROOT)], check=True)
    (wheel,) = (tmp_path / "dist").glob("medray-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names} == {"medray", next(name.split("/")[0] for name in names if ".dist-info" in name)}
    ours = [path for suffix in ("py", "css", "html", "js", "json", "jsonl") for path in (ROOT / "medray").rglob(f"*.{suffix}")]
    assert {f"medray/{path.relative_to(ROOT / 'medray').as_posix()}" for path in ours} <= set(names)
    script = "import medray, medray.plugins as p; print(medray.__file__); print(p.names('data.formats'), p.names('training.strategies'))"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert str(tmp_path / "site") in done.stdout
    assert "raw_abstracts" in done.stdout
    assert "torch" in done.stdout
