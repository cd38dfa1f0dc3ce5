import importlib.util
from pathlib import Path

from medray import storage

SAMPLES = Path(__file__).parent.parent / "jobs" / "samples"


def test_the_samples_are_what_their_generator_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", SAMPLES / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    committed = storage.hash_folder(SAMPLES, leave_out=["README.md", "generate.py"])
    assert len(committed) == 241
    assert {name: value for name, value in committed.items() if "__pycache__" not in name} == storage.hash_folder(tmp_path)
