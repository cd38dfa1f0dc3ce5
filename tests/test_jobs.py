"""What stands beside a job is first on its import path: a file named like a package would break every import of it."""

import subprocess
import sys
from pathlib import Path

from medray import config as configs

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"


def test_no_file_beside_a_job_shadows_an_importable_module() -> None:
    stems = sorted({path.stem for path in JOBS.rglob("*.py")})
    assert stems
    find = (
        f"import importlib.util, sys; sys.path = [p for p in sys.path if p]; print([s for s in {stems!r} if importlib.util.find_spec(s)])"
    )
    found = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert found.stdout.strip() == "[]"


def test_the_check_above_would_notice_such_a_file() -> None:
    find = "import importlib.util; print([s for s in ['gguf', 'h2', 'bench_train'] if importlib.util.find_spec(s)])"
    found = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert "gguf" in found.stdout
    assert "bench_train" not in found.stdout


def test_every_study_that_ships_loads() -> None:
    shipped = sorted((JOBS / "studies").rglob("*.yaml"))
    assert shipped
    for path in shipped:
        assert configs.load([JOBS / "studies" / "cancer.yaml", path] if "presets" in path.parts else [path]).base_models
