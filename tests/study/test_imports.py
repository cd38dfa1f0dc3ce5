"""Commands and processes of a study import no unnecessary package, which would cost seconds and
memory in each."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "forbidden_modules"),
    [
        (
            "medray.cli",
            "torch transformers peft ray pandas",
        ),  # of each command, before its own imports
        (
            "medray.study.ray_tune",
            "torch transformers peft",
        ),  # of the study's process, which computes nothing
        (
            "medray.study.trial_actor, medray.study.crew",
            "torch transformers peft",
        ),  # of a trial's process, before it trains
        (
            "medray.training.desk",
            "torch transformers peft pandas ray",
        ),  # of a desk's process
    ],
)
def test_a_process_that_computes_nothing_imports_no_torch(
    modules: str, forbidden_modules: str
) -> None:
    program = (
        f"import sys, {modules}; print([name for name in {forbidden_modules.split()} if name in "
        "sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert process.stdout == "[]\n", process.stderr
