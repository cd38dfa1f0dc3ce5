"""Break a promise on purpose, and run the tests that must fail: `python tests/mutations.py`. Each
edit is made in a copy of the tree. `python tests/mutations.py "test rows" alias` makes the edits
whose sentence contains one of the words."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    what: str
    path: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "the head is not saved",
        "medray/models/build.py",
        "    state = adapter.state(model.network)\n",
        "    state = {name: tensor for name, tensor in adapter.state(model.network).items() if "
        '"lora_" in name}\n',
        "tests/models/test_build.py",
    ),
    Mutation(
        "the gradient is averaged over micro-batches instead of weighted",
        "medray/training/loop.py",
        "/ step.weight\n                self.strategy",
        "/ self.row_loss.weights[list(batch.rows)].sum() / len(batches)\n"
        "                self.strategy",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "padding is masked by id",
        "medray/models/batch.py",
        '    return {"input_ids": input_ids, "attention_mask": attention_mask}',
        '    return {"input_ids": input_ids, "attention_mask": (input_ids != pad_id).long()}',
        "tests/training/test_loop.py tests/engines",
    ),
    Mutation(
        "a test row is in train",
        "medray/data/dataset.py",
        "        self._examples = example_rows.followed_by(source.examples, task_rows)\n",
        "        self._examples = example_rows.followed_by(source.examples, task_rows)\n        "
        "self.train = [*self.train, self._test[0]]\n",
        "tests/data/test_dataset.py tests/training/test_trial.py",
    ),
    Mutation(
        "a LoRA target is misspelt",
        "medray/models/families.py",
        '("q_proj", "k_proj"',
        '("q_porj", "k_proj"',
        "tests/models/test_build.py",
    ),
    Mutation(
        "the manifest is written first",
        "medray/storage/checkpoint.py",
        "        fill(filling)\n",
        "        storage.write(filling / MANIFEST, manifest.model_dump_json().encode())\n        "
        "fill(filling)\n",
        "tests/storage/test_checkpoint.py",
    ),
    Mutation(
        "dropout is not seeded from the place of the micro-batch",
        "medray/training/loop.py",
        "            torch.manual_seed(_seed(self.slot.rng, *self.slot.cursor, index, "
        "self.rank))\n",
        "",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "duplicates may stand on two sides",
        "medray/data/split.py",
        "members[cluster].append(row)",
        "members[row].append(row)",
        "tests/data/test_split.py",
    ),
    Mutation(
        "the latest checkpoint is taken for the best",
        "medray/training/trial.py",
        "best = self.files.checkpoint(stopper.best_step)",
        "best = self.files.checkpoint(self.slot.step)",
        "tests/training",
    ),
    Mutation(
        "trials are ranked by their last epoch",
        "medray/evaluation/trial_entries.py",
        "    return max(numbers, key=lambda evaluation: sign * evaluation.metrics[metric], "
        "default=None)",
        "    return numbers[-1] if numbers else None",
        "tests/evaluation/test_leaderboard.py",
    ),
    Mutation(
        "test rows are used in the search",
        "medray/training/material.py",
        "store_validation(dataset.validation, cache_dir)",
        "store_validation([*dataset.validation, *dataset._test], cache_dir)",
        "tests/study/test_study.py -k opens",
    ),
    Mutation(
        "the winner is chosen by test rows",
        "medray/evaluation/leaderboard.py",
        "    winner = order[0]",
        "    winner = max(candidates, key=lambda found: found.entry.test[metric])",
        "tests/evaluation/test_leaderboard.py",
    ),
    Mutation(
        "a released file that was changed is not noticed",
        "medray/storage/checkpoint.py",
        "if hashes.get(name) != file_hash\n        ]",
        "if False\n        ]",
        "tests/registry/test_registry.py tests/storage/test_checkpoint.py",
    ),
    Mutation(
        "an alias is ignored",
        "medray/registry/registry.py",
        "            version, digest = move.version, move.record",
        "            version = versions[-1]",
        "tests/registry/test_registry.py",
    ),
    Mutation(
        "a record that was changed behind its alias is loaded",
        "medray/registry/release.py",
        "        if digest not in (None, self.digest):",
        "        if False:",
        "tests/attacks/test_store.py",
    ),
    Mutation(
        "a replica switches to an unsigned version",
        "medray/serving/replica.py",
        "        if self.options.require_signature:",
        "        if False:",
        "tests/attacks/test_signatures.py",
    ),
    Mutation(
        "4-bit layers are left as bitsandbytes makes them",
        "medray/models/quantization.py",
        'keep their weights unchanged."""\n    for module in layers_4bit(network).values():',
        'keep their weights unchanged."""\n    for module in ():',
        "tests/models/test_quantization.py",
    ),
    Mutation(
        "a merge that moves F1 is served",
        "medray/registry/release.py",
        "        return merge.is_faithful if merge else",
        "        return True if merge else",
        "tests/study/test_merge.py -k served",
    ),
    Mutation(
        "heads are in 4 bits",
        "medray/models/quantization.py",
        '[f"^{re.escape(name)}$" for name in outside]',
        "[]",
        "tests/models/test_families.py",
    ),
    Mutation(
        "losses are averaged over ranks",
        "medray/training/distributed.py",
        "    dist.all_reduce(flat)\n",
        "    dist.all_reduce(flat)\n    flat /= world_size()\n",
        "tests/training/test_strategies.py -k workers",
    ),
    Mutation(
        "DeepSpeed averages what are parts of a sum",
        "medray/training/strategies/deepspeed.py",
        "loss * distributed.world_size(), scale_wrt_gas=False",
        "loss, scale_wrt_gas=False",
        "tests/training/test_strategies.py -k workers",
    ),
    Mutation(
        "base models share their rungs",
        "medray/study/search.py",
        "        child = self._children[self._base_of[trial]]",
        "        child = self._children[0]",
        "tests/study/test_search.py",
    ),
    Mutation(
        "labels in one row see each other",
        "medray/engines/scoring.py",
        "    for path in (branch, leaf):",
        "    for path in (branch,):",
        "tests/engines/test_scoring.py",
    ),
    Mutation(
        "questions in one row see each other",
        "medray/engines/scoring.py",
        "    for path in (branch, leaf):",
        "    for path in (leaf,):",
        "tests/engines/test_branches.py",
    ),
    Mutation(
        "the loss counts the prompt's last token",
        "medray/models/batch.py",
        "positions += range(shift + start - 1, shift + end - 1)",
        "positions += range(shift + start - 2, shift + end - 2)",
        "tests/training/test_choice.py",
    ),
    Mutation(
        "the answer is cut with the text",
        "medray/text/prompts.py",
        "room = readable(max_length, tokenizer) - answer",
        "room = readable(max_length, tokenizer)",
        "tests/tasks/test_choice.py",
    ),
    Mutation(
        "PubMedQA's conclusion is read",
        "medray/data/formats/pubmedqa.py",
        "for key, value in record.items() if key != _CONCLUSION}",
        "for key, value in record.items()} | {'year': record.get(_CONCLUSION)}",
        "tests/data/test_format_pubmedqa.py",
    ),
)


def main(words: list[str]) -> int:
    num_survivors = 0
    for mutation in MUTATIONS:
        if words and not any(word in mutation.what for word in words):
            continue
        with tempfile.TemporaryDirectory() as folder:
            for part in ("medray", "tests", "jobs", "pyproject.toml"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, Path(folder) / part)
            path = Path(folder) / mutation.path
            text = path.read_text(encoding="utf-8")
            if text.count(mutation.old) != 1:
                print(
                    f"{mutation.what}: the text to change stands {text.count(mutation.old)} times "
                    f"in {mutation.path}"
                )
                return 2
            path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-m",
                "not slow",
                "-p",
                "no:cacheprovider",
                *mutation.tests.split(),
            ]
            environment = os.environ | {"PYTHONPATH": folder}
            process = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, env=environment
            )
        failing_tests = [
            line.split(" - ")[0].removeprefix("FAILED ")
            for line in process.stdout.splitlines()
            if line.startswith("FAILED")
        ]
        num_survivors += not failing_tests
        outcome = f"SURVIVED, pytest exit status {process.returncode}"
        if failing_tests:
            outcome = f"caught by {failing_tests[0]}"
        print(f"{mutation.what}: {outcome}", flush=True)
    return 1 if num_survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
