"""Workers and replicas do not import packages that they never use, which would take seconds in
each."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from types import ModuleType

def loaded(*names):
    return [name for name in names if isinstance(sys.modules.get(name), ModuleType)]

import medray.registry.registry, medray.registry.repair
print("registry", loaded("torch", "transformers", "peft"))
import medray.serving.replica, medray.training.worker, medray.study.final_test
print("worker", loaded("bitsandbytes", "sklearn", "torch._inductor.compile_fx"))
from support import tiny
from medray.tasks.base.protocol import Head
tiny.merged_model(Path(sys.argv[1]), "bert", Head(("cancer", "other")))
print("adapted", loaded("bitsandbytes", "sklearn"))
from medray.config.trial import LoraConfig, ModelOptions
from medray.models import sources
from medray.models.build import build
base = sources.resolve(str(tiny.base(Path(sys.argv[1]), "llama")), None)
model = build(base, Head(("cancer", "other")), ModelOptions(quantization="nf4"), LoraConfig())
kinds = [kind for layer in model.network.modules() for kind in type(layer).mro()]
of_bnb = {kind.__name__ for kind in kinds if kind.__module__ == "peft.tuners.lora.bnb"}
print("in 4 bits", sorted(of_bnb))
"""


def test_what_only_4_bits_need_is_imported_for_4_bits_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120
    )
    lines = [
        line for line in process.stdout.splitlines() if not line.startswith("[")
    ]  # DeepSpeed logs there that it was found
    assert lines == ["registry []", "worker []", "adapted []", "in 4 bits ['Linear4bit']"], (
        process.stderr
    )
    assert (
        "gemm_4bit_forward" not in process.stderr
    )  # bitsandbytes advises to install a kernel that nobody calls
