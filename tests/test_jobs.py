"""Files beside a job come first on its import path. A file with the name of a package would break
its imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.errors import ConfigError
from medray.study import preflight

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"


def test_no_file_beside_a_job_shadows_an_importable_module() -> None:
    stems = sorted({path.stem for path in JOBS.rglob("*.py")})
    assert stems
    find = (
        "import importlib.util, sys; sys.path = [p for p in sys.path if p]; print([s for s in "
        f"{stems!r} if importlib.util.find_spec(s)])"
    )
    process = subprocess.run(
        [sys.executable, "-c", find], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert process.stdout.strip() == "[]"


def test_the_check_above_would_notice_such_a_file() -> None:
    find = (
        "import importlib.util; print([s for s in ['gguf', 'h2', 'bench_train'] if "
        "importlib.util.find_spec(s)])"
    )
    process = subprocess.run(
        [sys.executable, "-c", find], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert "gguf" in process.stdout
    assert "bench_train" not in process.stdout


STUDIES = sorted(path.stem for path in (JOBS / "studies").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (JOBS / "studies" / "presets").glob("*.yaml"))
# Of base models that come from the Hub, tiny ones of the same architecture.
FAMILIES = {
    "roberta": "roberta",
    "distilbert": "distilbert",
    "bert": "bert",
    "opt": "opt",
    "mistral": "mistral",
    "llama": "llama",
}
FAMILIES |= {"smollm": "llama", "phi-2": "phi", "phi-4": "phi3"}


def rows(folder: Path, kind: str) -> Path:
    """A small file or folder in the layout of a format, with as many labels as the public one
    has."""
    if kind == "raw_abstracts":
        return tiny.raw_abstracts(folder)
    path = folder / kind
    if kind == "symptom_table":
        lines = [
            f"disease {number % 41},sign {number % 41}, mark {number}" for number in range(41 * 8)
        ]
        path.write_text("\n".join(["Disease,Symptom_1,Symptom_2", *lines]) + "\n")
    elif kind == "delimited":
        lines = [
            (
                f"{number},{tiny.WORDS[number % 37]} {tiny.WORDS[number % 31]} {number},condition "
                f"{number % 5}"
            )
            for number in range(100)
        ]
        path.write_text("\n".join(["id,abstract,condition", *lines]) + "\n")
    elif kind == "pubmedqa":
        contents = {
            str(number): {
                "QUESTION": (
                    f"Does {tiny.WORDS[number % 37]} help in {number} of {tiny.WORDS[number % 31]}?"
                ),
                "CONTEXTS": [f"{tiny.WORDS[number % 29]} {number}"],
                "LONG_ANSWER": f"It may {number}.",
                "final_decision": ("yes", "no", "maybe")[number % 3],
            }
            for number in range(60)
        }
        path.write_text(json.dumps(contents))
    else:
        assert kind == "instructions", kind
        return tiny.instructions(folder)
    return path


def load_shipped_study(
    folder: Path, study: str, *presets: str, settings: tuple[str, ...] = ()
) -> StudyConfig:
    """A study as it is load_shipped_study, with data and base models that are here."""
    files = [
        JOBS / "studies" / f"{study}.yaml",
        *(JOBS / "studies" / "presets" / f"{preset}.yaml" for preset in presets),
    ]
    config: Any = load_study(files)
    all_settings = [f"storage_path={folder / 'runs'}", *settings]
    for number, base in enumerate(config.base_models):
        if not base.source.startswith("pkg:"):
            family = next(
                family for name, family in FAMILIES.items() if name in base.source.lower()
            )
            all_settings.append(f"base_models.{number}.source={tiny.base(folder, family)}")
    if not (ROOT / config.data.format.path).exists():
        all_settings.append(f"data.format.path={rows(folder, config.data.format.name)}")
    return load_study(files, all_settings)


def test_every_study_that_ships_loads() -> None:
    assert STUDIES
    assert PRESETS
    for study in STUDIES:
        assert load_study([JOBS / "studies" / f"{study}.yaml"]).base_models


@pytest.mark.parametrize("presets", [(), *((preset,) for preset in PRESETS)], ids=" ".join)
@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.document(
    "003",
    "presets for fast tests and for production",
    where="`jobs/studies/presets`",
)
def test_every_study_that_ships_passes_its_dry_run_with_every_preset(
    study: str, presets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_shipped_study(tmp_path, study, *presets)
    if config.train.strategy == "deepspeed":
        pytest.importorskip("deepspeed")
    preflight.check(config, with_data=True)
    if presets:
        assert config.train.max_steps is None


def test_a_limit_below_the_number_of_diseases_fails_the_dry_run(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.limit: 30 is too small; a train row of every label needs 41"
    ):
        preflight.check(
            load_shipped_study(tmp_path, "seed_002_opt", settings=("data.limit=30",)),
            with_data=True,
        )


def test_the_studies_use_what_they_are_there_to_show() -> None:
    studies = {study: load_study([JOBS / "studies" / f"{study}.yaml"]) for study in STUDIES}
    stages = {
        study: (config.train.zero_stage, config.resources.num_workers)
        for study, config in studies.items()
        if config.train.zero_stage
    }
    assert stages == {"cancer_zero2": (2, 2), "seed_004_zero3": (3, 2)}
    assert studies["seed_004_zero3"].base_models[0].source == "mistralai/Mistral-7B-v0.3"
    assert studies["seed_002_opt"].train.keep_checkpoints == 3
    assert (
        studies["seed_000_zero_shot"].task.name,
        studies["seed_000_zero_shot"].data.format.name,
    ) == ("choice", "raw_abstracts")


@pytest.mark.document(
    "002",
    "the prompt: Given these symptoms: … The disease is:",
    where="`jobs/studies/seed_002_opt.yaml`",
)
@pytest.mark.document(
    "002",
    "30 epochs, cosine schedule, warm-up, weight decay, batches of 1 accumulated 8 times",
    where="`jobs/studies/seed_002_opt.yaml`",
    how="8 rows a step, in batches that fit memory",
)
@pytest.mark.document(
    "004",
    "LoRA r 16 on q_proj and v_proj, 7 epochs, fp16, 2e-4, warm-up of 100 steps, 4 x 4 rows a step",
    where="`jobs/studies/seed_004_pubmedqa.yaml`",
)
def test_the_studies_have_the_settings_of_their_documents() -> None:
    studies = {study: load_study([JOBS / "studies" / f"{study}.yaml"]) for study in STUDIES}
    opt, assistant, pubmedqa = (
        studies["seed_002_opt"],
        studies["seed_003_phi4_mini"],
        studies["seed_004_pubmedqa"],
    )
    assert _options(opt.task, "prompt") == ["Given these symptoms: {text}\n\nThe disease is:"]
    assert (opt.lora.r, opt.lora.alpha, opt.lora.dropout, opt.model.precision) == (
        16,
        32,
        0.05,
        "fp16",
    )
    assert opt.model.gradient_checkpointing
    train = opt.train
    assert (train.epochs, train.samples_per_step, train.learning_rate, train.weight_decay) == (
        30,
        8,
        1e-4,
        0.01,
    )
    assert (train.schedule, train.warmup_ratio, train.keep_checkpoints, opt.seed) == (
        "cosine",
        0.1,
        3,
        42,
    )
    assert (
        assistant.seed,
        assistant.model.quantization,
        assistant.model.gradient_checkpointing,
    ) == (816, "nf4", True)
    assert (assistant.lora.r, assistant.lora.alpha, assistant.lora.dropout) == (16, 32, 0.1)
    train = assistant.train
    assert (train.max_steps, train.samples_per_step, train.learning_rate, train.patience) == (
        36,
        32,
        2e-4,
        3,
    )
    prompt = (
        "### Instruction:\nAnswer the following medical question concisely.\n\n{text}\n\n### "
        "Response:\n"
    )
    assert _options(pubmedqa.task, "prompt", "max_length", "metric") == [prompt, 512, "accuracy"]
    assert [base.source.rpartition("/")[2] for base in pubmedqa.base_models] == [
        "Mistral-7B-v0.3",
        "Llama-3.2-1B",
        "Llama-3.2-3B",
    ]
    assert (pubmedqa.model.quantization, pubmedqa.model.precision) == ("nf4", "fp16")
    assert (pubmedqa.lora.r, pubmedqa.lora.alpha, pubmedqa.lora.dropout, pubmedqa.lora.targets) == (
        16,
        32,
        0.05,
        ("q_proj", "v_proj"),
    )
    train = pubmedqa.train
    assert (train.epochs, train.samples_per_step, train.learning_rate, train.warmup_steps) == (
        7,
        16,
        2e-4,
        100,
    )


def _options(task: Any, *names: str) -> list[object]:
    return [getattr(task, name) for name in names]
