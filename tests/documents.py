"""`python tests/documents.py`: write docs/five-systems.md, what five documents promise and whether
medray does it, from the tests that show it.

A test declares the promise that it shows: `@pytest.mark.document("002", "a promise as SYSTEMS has
it", where="jobs/study.py")`, with `how="…"` where it is kept in another way than the document's. A
promise that is not kept stands in EXCEPTIONS with the reason."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "five-systems.md"
INTRO = """# Five systems

Five documents describe systems that fine-tune a model on biomedical text and use it. medray does
the work of all five; these tables say how far. A row is kept where the test beside it passes. Those
tests train tiny random models of the same architecture classes on CPUs.
So no row says how good a model of the documents is, nor that it was trained on a GPU.

`python tests/documents.py` writes this page from the tests.
"""


@dataclass(frozen=True)
class System:
    """One of the five, and what its document promises, in its order."""

    what: str
    promises: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    document: str
    promise: str
    where: str
    state: str


SYSTEMS = {
    "000": System(
        "Phi-2 tells abstracts about cancer from others, and names the disease; vLLM and FastAPI "
        "serve it",
        (
            "raw files of abstracts become rows of keys and values",
            "title and abstract become the text, the folder the class",
            "both classes become one table with class labels",
            "Phi-2 becomes a sequence classifier with LoRA",
            "a PEFT checkpoint is loaded for inference",
            "a text-classification pipeline answers with the tuned model",
            "base model and tuned model are compared, zero-shot against fine-tuned",
            "every abstract gets all probabilities",
            "confusion matrix, accuracy, precision, recall and F1",
            "a prompt with examples extracts disease names",
            "structured output of mentions, tagged in the text",
            "vLLM serves the classifier",
            "weights in fp16 while serving",
            "long prompts do not run out of memory (paged attention)",
            "answers are streamed while they are generated",
            "one command exposes a REST API at a port of choice",
            "LoRA versions of one base model are served",
            'POST /classify takes {"text"} and answers {"label"}',
        ),
    ),
    "001": System(
        "RoBERTa, BERT and DistilBERT tell cancer papers from others; a Docker image serves the "
        "best beside an LLM that names the disease",
        (
            "a pipe-delimited file of ID, title with abstract, and label",
            "labels become classes, also several of a row",
            "rows are shuffled and split",
            "three models with the same hyperparameters on the same rows",
            "training loss, validation loss, accuracy and F1 of each epoch",
            "the best model is chosen, a smaller one where it is as good",
            "texts are tokenized and LoRA adapters are put in by PEFT",
            "the Trainer of transformers trains",
            "test rows are predicted with softmax",
            "accuracy, confusion matrix and F1",
            "the merged model is saved",
            "a default end point",
            "a classification end point, also of several labels",
            "an end point where an LLM names the disease",
            "Phi-4 names diseases out of the box",
            "a Docker image",
            "a Hugging Face Space",
            "a notebook calls the end points",
        ),
    ),
    "002": System(
        "OPT-1.3B completes a prompt of symptoms by the disease",
        (
            "columns of symptoms become one text, duplicates go",
            "80/20 split, stratified by disease",
            "the prompt: Given these symptoms: … The disease is:",
            "OPT reads rows that are padded on the left",
            "the base model's weights are fp16",
            "the base model is measured before training",
            "LoRA of r 16 and alpha 32 on the layers of attention and MLP",
            "the number of parameters that train is printed",
            "the loss is of the answer alone, padding is masked",
            "30 epochs, cosine schedule, warm-up, weight decay, batches of 1 accumulated 8 times",
            "gradient checkpointing",
            "a checkpoint each epoch, the last three are kept",
            "curves in TensorBoard",
            "20 tokens are generated and the disease is read out of them",
            "accuracy, macro F1 and a report of each class",
            "adapter and tokenizer are saved and loaded again",
        ),
    ),
    "003": System(
        "Phi-4-mini or SmolLM becomes a medical assistant that refuses what is unsafe, in 4 bits "
        "on a GPU of 6 GB",
        (
            "training is configured by one YAML file, another file by its name",
            "JSON lines of instruction and response",
            "conversations in the model's chat template",
            "Phi-4-mini and SmolLM are fine-tuned",
            "training in 4 bits with LoRA",
            "a GPU of 6 GB suffices",
            "training stops early when nothing improves",
            "gradient checkpointing changes memory, not results",
            "numbered checkpoints and a final model",
            "presets for fast tests and for production",
            "batch size and length are reduced when memory runs out",
            "a chat in the terminal with the tuned model",
            "a medical system prompt",
            "unsafe questions are answered by a fixed refusal",
            "specific diagnoses and harmful advice are refused",
            "answers carry a disclaimer",
            "answers to new questions are shown",
            "one command installs all",
            "runs on Linux, macOS and Windows with WSL2",
        ),
    ),
    "004": System(
        "Mistral-7B and two Llamas answer PubMedQA's questions by yes or no, with QLoRA",
        (
            "PubMedQA, labelled",
            "yes and no are the answers",
            "three language models are fine-tuned",
            "weights in 4 bits take a quarter of the memory",
            (
                "LoRA r 16 on q_proj and v_proj, 7 epochs, fp16, 2e-4, warm-up of 100 steps, 4 x 4 "
                "rows a step"
            ),
            "an instruction template around question and answer",
            "texts are cut at 512 tokens",
            "rows are padded to one length",
            "loss is logged every ten steps",
            "checkpoints are saved, an interrupted training goes on",
            "accuracy before and after, on the same rows",
            "accuracy grows by 25 to 35 points, to 65 to 85 %",
            "the answer is read out of generated text",
            "answers with an explanation",
            "4 to 6 GB of a GPU for Mistral-7B, 2 to 3 for Llama 3B, 1 to 2 for Llama 1B",
            "inference stays as fast as the base model's",
            "interactive testing with questions of one's own",
            "for the future: conversations of several turns",
            "for the future: sources are cited",
            "for the future: answers have a confidence",
            "for the future: more medical domains",
            "for the future: more languages",
        ),
    ),
}

EXCEPTIONS = (
    Row(
        "003",
        "a GPU of 6 GB suffices",
        "`medray plan`",
        "not kept: Phi-4-mini takes 6.7 GB with the document's settings, by estimate; its "
        "embeddings are not in 4 bits",
    ),
    Row(
        "003",
        "runs on Linux, macOS and Windows with WSL2",
        "",
        "not kept: it is tested on Linux alone",
    ),
    Row(
        "004",
        "accuracy grows by 25 to 35 points, to 65 to 85 %",
        "`jobs/studies/seed_004_pubmedqa.yaml`",
        "not kept: these models have not been trained; the study reports both accuracies with "
        "intervals",
    ),
)


def rows() -> list[Row]:
    return [*EXCEPTIONS, *from_tests()]


def from_tests() -> Iterator[Row]:
    """A row for each mark of each test; the files are parsed, not imported."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.document" in text:
            yield from read(text, path.relative_to(ROOT).as_posix())


def read(text: str, file: str) -> Iterator[Row]:
    for test in ast.walk(ast.parse(text)):
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.document":
                    document, promise = (ast.literal_eval(values) for values in mark.args)
                    values = {
                        str(option.arg): ast.literal_eval(option.value) for option in mark.keywords
                    }
                    state = f"kept otherwise: {values['how']}" if "how" in values else "kept"
                    yield Row(document, promise, values["where"], f"{state} ([test](../{file}))")


def mistakes(entries: list[Row]) -> list[str]:
    """Promises without a row, with two, and rows of promises that no document has."""
    promises = [
        (number, promise) for number, system in SYSTEMS.items() for promise in system.promises
    ]
    counts = Counter((row.document, row.promise) for row in entries)
    return [
        *(
            f"{number}: no row: {promise}"
            for number, promise in promises
            if not counts[number, promise]
        ),
        *(
            f"{number}: {count} rows: {promise}"
            for (number, promise), count in counts.items()
            if count > 1
        ),
        *(
            f"{number}: not a promise: {promise}"
            for number, promise in counts
            if (number, promise) not in promises
        ),
    ]


def render(entries: list[Row]) -> str:
    by_promise = {(row.document, row.promise): row for row in entries}
    lines = [INTRO]
    for number, system in SYSTEMS.items():
        entries_of_system = [by_promise[number, promise] for promise in system.promises]
        lines += [
            f"## {number}: {system.what}",
            "",
            "| promise | where | state |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {row.promise} | {row.where} | {row.state} |" for row in entries_of_system]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    entries = rows()
    if wrong := mistakes(entries):
        print("\n".join(wrong))
        return 1
    PAGE.write_text(render(entries), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(entries)} promises, {len(EXCEPTIONS)} not kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
