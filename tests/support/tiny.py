"""Tiny random base models of the real architecture classes, with a tokenizer that is built in the
test."""

import json
import random
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from medray.config.load import load_study

WORDS = [
    "tumour",
    "carcinoma",
    "metastasis",
    "biopsy",
    "patient",
    "study",
    "blood",
    "pressure",
    "renal",
    "hepatic",
    "cell",
    "growth",
    "stage",
    "nodes",
    "surgery",
    "therapy",
    "infection",
    "culture",
    "fever",
    "glucose",
    "insulin",
    "heart",
    "failure",
    "rhythm",
    "lung",
    "airway",
    "the",
    "of",
    "in",
    "with",
    "was",
    "were",
    "and",
    "no",
    "after",
    "before",
    "group",
]
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
}
_HEADS: dict[str, Any] = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}
_WINDOWS = ["sliding_attention", "full_attention"]
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _SIZES),
    "roberta": ("Roberta", _SIZES),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 130},
    ),
    "llama": ("Llama", {**_SIZES, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {**_SIZES, "num_key_value_heads": 1}),
    "phi": ("Phi", _SIZES),
    "phi3": ("Phi3", {**_SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 1}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "electra": ("Electra", {**_SIZES, "embedding_size": 32}),
    "modernbert": (
        "ModernBert",
        {**_SIZES, "layer_types": _WINDOWS, "local_attention": 8, "cls_token_id": 2}
        | {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
    ),
    "qwen2": ("Qwen2", {**_SIZES, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", _HEADS),
    "qwen3_5_text": (
        "Qwen3_5Text",
        {**_HEADS, "layer_types": ["linear_attention", "full_attention"]}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ),
    "gemma2": ("Gemma2", {**_HEADS, "layer_types": _WINDOWS, "sliding_window": 8}),
    "gemma3_text": ("Gemma3Text", {**_HEADS, "layer_types": _WINDOWS, "sliding_window": 8}),
    "gemma4_text": (
        "Gemma4Text",
        {**_HEADS, "layer_types": _WINDOWS, "sliding_window": 8, "global_head_dim": 16}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 160},
    ),
    "smollm3": ("SmolLM3", {**_SIZES, "num_key_value_heads": 1, "no_rope_layers": [1, 0]}),
    "ministral3": ("Ministral3", _HEADS),
}
DECODERS = (
    *("llama", "mistral", "phi", "phi3", "opt"),
    *("qwen2", "qwen3", "qwen3_5_text", "gemma2", "gemma3_text", "gemma4_text"),
    *("smollm3", "ministral3"),
)
# transformers has no Gemma 4 with a head
WITH_HEADS = tuple(family for family in DECODERS if family != "gemma4_text")
_places: list[
    Path
] = []  # of what is made once for all tests of a process: conftest names one that pytest removes


def share(place: Path) -> None:
    _places.append(place)


def _shared_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_places[-1] if _places else None, prefix="tiny-"))


def base(folder: Path, family: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """Write a base model without a head, as from the Hub, into the caller's folder. A decoder has
    its language model."""
    path = folder / f"tiny-{family}"
    shutil.rmtree(
        path, ignore_errors=True
    )  # not written over: a model may still be mapped from there
    shutil.copytree(_base(family, seed, json.dumps(changes)), path)
    return path


def round_base(path: Path) -> None:
    """Store a base model in the numbers of bf16, as most large ones are."""
    (file,) = path.glob("*.safetensors")
    weights = {name: weight.bfloat16().float() for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@cache
def _base(family: str, seed: int, changes_json: str) -> Path:
    path, changes = _shared_folder(), json.loads(changes_json)
    tokens = tokenizer(family)
    torch.manual_seed(seed)
    name, sizes = _KINDS[family]
    ends = (
        {"eos_token_id": tokens.eos_token_id} if family in DECODERS else {}
    )  # else a family's own number: a word of this vocabulary
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
        | {"initializer_range": 0.2}
        | sizes
        | ends
        | changes,
    )
    kind = f"{name.removesuffix('Text')}ForCausalLM" if family in DECODERS else f"{name}Model"
    getattr(transformers, kind)(config).save_pretrained(path)
    tokens.save_pretrained(path)
    return path


def merged_model(folder: Path, family: str, head):  # type: ignore[no-untyped-def]
    """Return a model as it is served: with a merged adapter, or without an adapter where it has no
    head."""
    from medray.config.trial import LoraConfig, ModelOptions
    from medray.models import sources
    from medray.models.build import build, merge

    model = build(
        sources.resolve(str(base(folder, family)), None),
        head,
        ModelOptions(),
        LoraConfig() if head else None,
    )
    model = merge(model)
    model.network.eval()
    return model


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family in DECODERS:  # as SmolLM2 has it: padding is the end of sequence
        special = ["<|endoftext|>", "<|im_end|>"]
        names = {"unk_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        names = {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
        }
    characters = [chr(code) for code in range(33, 127)]
    vocab = {
        token: number for number, token in enumerate(dict.fromkeys([*special, *WORDS, *characters]))
    }
    word_level = Tokenizer(models.WordLevel(vocab, unk_token=names["unk_token"]))
    word_level.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    word_level.decoder = decoders.WordPiece()
    if family not in DECODERS:
        word_level.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=word_level, model_max_length=128, **names)


def text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def abstracts(folder: Path, num_rows: int = 60, seed: int = 0) -> Path:
    """Write JSON lines that a tiny model can learn: a row is about cancer when it has one of three
    words."""
    rng = random.Random(seed)
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(num_rows):
            label = ("cancer", "other")[number % 2]
            words = [
                word
                for word in text(rng, rng.randint(4, 30)).split()
                if word not in ("tumour", "carcinoma", "metastasis")
            ]
            if label == "cancer":
                words.insert(
                    rng.randrange(len(words) + 1), rng.choice(("tumour", "carcinoma", "metastasis"))
                )
            file.write(
                json.dumps(
                    {"id": f"r{number}", "text": " ".join(words) + f" {number}", "label": label}
                )
                + "\n"
            )
    return path


SIGNS = {
    "renal failure": ("renal", "glucose"),
    "heart failure": ("rhythm", "pressure"),
    "fever": ("infection", "culture"),
}


def choices(folder: Path, num_rows: int = 60, seed: int = 0) -> Path:
    """Write rows whose label is one or two words of the vocabulary and follows from one word of the
    text."""
    rng = random.Random(seed)
    path = folder / "choices.jsonl"
    signs = {sign for words_of_label in SIGNS.values() for sign in words_of_label} | {
        word for label in SIGNS for word in label.split()
    }
    others = [word for word in WORDS if word not in signs]
    with path.open("w") as file:
        for number in range(num_rows):
            label = list(SIGNS)[number % len(SIGNS)]
            words = [rng.choice(others) for _ in range(rng.randint(3, 12))]
            words.insert(rng.randrange(len(words) + 1), rng.choice(SIGNS[label]))
            file.write(
                json.dumps(
                    {"id": f"r{number}", "text": " ".join(words) + f" {number}", "label": label}
                )
                + "\n"
            )
    return path


def choice_study(folder: Path, *settings: str, family: str = "llama", num_rows: int = 60):  # type: ignore[no-untyped-def]
    """Return a `study` of a causal language model that picks one of three labels."""
    data = folder / "choices.jsonl"
    return study(
        folder,
        f"data.format.path={data if data.exists() else choices(folder, num_rows)}",
        "task={name: choice, max_length: 48, prompt: '{text} the', answer: ' {label}'}",
        "train.epochs=3",
        *settings,
        family=family,
    )


def instructions(folder: Path, num_rows: int = 48, seed: int = 0) -> Path:
    """Write questions whose answer follows from one of their words."""
    rng = random.Random(seed)
    path = folder / "instructions.jsonl"
    signs = {sign for words_of_label in SIGNS.values() for sign in words_of_label} | {
        word for label in SIGNS for word in label.split()
    }
    others = [word for word in WORDS if word not in signs]
    with path.open("w") as file:
        for number in range(num_rows):
            answer = list(SIGNS)[number % len(SIGNS)]
            words = [rng.choice(others) for _ in range(rng.randint(2, 6))]
            words.insert(rng.randrange(len(words) + 1), rng.choice(SIGNS[answer]))
            file.write(
                json.dumps(
                    {
                        "id": f"r{number}",
                        "instruction": " ".join(words) + f" {number}",
                        "response": f"the {answer}",
                    }
                )
                + "\n"
            )
    return path


def instruct_study(folder: Path, *settings: str, family: str = "llama", num_rows: int = 48):  # type: ignore[no-untyped-def]
    """Return a `study` of a causal language model that answers in words."""
    data = folder / "instructions.jsonl"
    return study(
        folder,
        "data.format={name: instructions, path: "
        f"{data if data.exists() else instructions(folder, num_rows)}, id: id}}",
        "task={name: instruct, system: the study of, max_length: 100, max_new_tokens: 6, metric: "
        "token_f1}",
        "train.epochs=4",
        "train.token_budget=512",
        *settings,
        family=family,
    )


QUESTIONS = """
cause: {type: choice, instructions: the study of, options: [renal failure, heart failure, fever]}
surgery: {type: predicate, instructions: surgery in the group}
growth: {type: score, instructions: the growth of, options: [no, cell, tumour]}
"""


def typed_questions(folder: Path, num_rows: int = 60, seed: int = 0) -> Path:
    """Write a table with a choice, a predicate and a score, whose answers follow from words of the
    text, and the file of these questions beside it."""
    rng = random.Random(seed)
    signs = {sign for words_of_label in SIGNS.values() for sign in words_of_label}
    parts = {word for label in SIGNS for word in label.split()} | {"surgery", "growth", "yes", "no"}
    others = [word for word in WORDS if word not in signs | parts]
    lines = ["id,state,cause,surgery,growth"]
    for number in range(num_rows):
        cause, has_surgery = list(SIGNS)[number % len(SIGNS)], number // 3 % 2 == 0
        growth = number // 6 % 3
        words = [rng.choice(others) for _ in range(rng.randint(3, 8))]
        words += [rng.choice(SIGNS[cause]), *["surgery"] * has_surgery, *["growth"] * growth]
        rng.shuffle(words)
        lines.append(f"r{number},{' '.join(words)} {number},{cause},{has_surgery},{growth}")
    (folder / "questions.yaml").write_text(QUESTIONS)
    path = folder / "questions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def decision_study(folder: Path, *settings: str, family: str = "llama", num_rows: int = 60):  # type: ignore[no-untyped-def]
    """Return a `study` of a causal language model that answers typed questions."""
    data = folder / "questions.csv"
    path = data if data.exists() else typed_questions(folder, num_rows)
    return study(
        folder,
        f"data.format={{name: typed_questions, path: {path}, "
        f"question_file: {folder / 'questions.yaml'}, id: id}}",
        "task={name: decisions, max_length: 48, question: ' {question} was'}",
        "train.epochs=4",
        *settings,
        family=family,
    )


NAMES = ("carcinoma", "renal failure", "heart failure", "lung infection")


def annotations(folder: Path, num_rows: int = 60, seed: int = 0) -> Path:
    """Write rows with mentions that a tiny model can learn: four names, among other words."""
    rng = random.Random(seed)
    path = folder / "annotated.jsonl"
    others = [word for word in WORDS if not any(word in name for name in NAMES)]
    with path.open("w") as file:
        for number in range(num_rows):
            words, mentions = [rng.choice(others) for _ in range(rng.randint(3, 9))], []
            for name in rng.sample(NAMES, number % 3):
                words.insert(rng.randrange(len(words) + 1), name)
            text = " ".join(words) + f" {number}"
            for name in NAMES:
                if name in words:
                    start = len(" ".join(words[: words.index(name)])) + (words.index(name) > 0)
                    mentions.append({"start": start, "end": start + len(name), "text": name})
            file.write(json.dumps({"id": f"r{number}", "text": text, "mentions": mentions}) + "\n")
    return path


def mention_study(
    folder: Path, task: str, *settings: str, family: str = "bert", num_rows: int = 60
):  # type: ignore[no-untyped-def]
    """Return a `study` of annotated rows; `task` is its YAML."""
    data = folder / "annotated.jsonl"
    return study(
        folder,
        "data.format={name: spans, path: "
        f"{data if data.exists() else annotations(folder, num_rows)}, id: id}}",
        f"task={task}",
        *settings,
        family=family,
    )


def raw_abstracts(folder: Path, num_rows: int = 30) -> Path:
    """Write a folder per class, with a file per abstract."""
    for label, word in (("cancer", "tumour"), ("non_cancer", "fever")):
        (folder / "raw" / label).mkdir(parents=True)
        for number in range(num_rows // 2):
            text = (
                f"<ID:{label}{number}>\nTitle: study {number}\nAbstract: {word} in group {number}\n"
            )
            (folder / "raw" / label / f"{number}-{label}.txt").write_text(text)
    return folder / "raw"


def study(folder: Path, *settings: str, family: str = "bert", num_rows: int = 60):  # type: ignore[no-untyped-def]
    """Return a study of a tiny base model and generated rows."""

    source = folder / f"tiny-{family}"
    data = folder / "rows.jsonl"
    return load_study(
        [],
        [
            "name=tiny",
            f"storage_path={folder / 'runs'}",
            (
                "data.format={name: jsonl, path: "
                f"{data if data.exists() else abstracts(folder, num_rows)}, id: id}}"
            ),
            "task={name: classification, positive_label: cancer, max_length: 64}",
            f"base_models=[{{source: {source if source.exists() else base(folder, family)}}}]",
            "model.precision=fp32",
            "train={epochs: 2, samples_per_step: 8, learning_rate: 0.01, token_budget: 128}",
            "resources.cpus_per_worker=1",
            *settings,
        ],
    )


@cache
def checkpoint(kind: str = "study", *settings: str) -> Path:
    """Return the checkpoint of a trial of one epoch, trained once per process. Tests read or
    publish it, which copies it."""
    place = _shared_folder()
    kinds = {
        "study": study,
        "choice": choice_study,
        "instruct": instruct_study,
        "decisions": decision_study,
        "encoder decisions": partial(decision_study, family="bert"),
    }
    study_config = kinds[kind](place, "train.epochs=1", *settings)
    return trial(study_config, place).run().checkpoint


def trial(study_config, folder: Path, **reports):  # type: ignore[no-untyped-def]
    """Return the first trial of a study, ready to run."""
    from medray.data import dataset
    from medray.tasks.base import protocol as tasks
    from medray.training.material import gather
    from medray.training.trial import Trial

    config = study_config.trial(study_config.base_models[0])
    data = dataset.load(config.data, config.task.bring)
    material = gather(
        config, data, tasks.fit(config.task, data.label_sets(), data.train), folder / "prepared"
    )
    return Trial(config, material, folder / "trial", reports.get("report", lambda report: None))


def aliases(registry: Any, name: str) -> dict[str, int]:
    """Return the version of each alias of a release."""
    return {alias: registry.newest(name, alias).version for alias in registry.alias_names(name)}
