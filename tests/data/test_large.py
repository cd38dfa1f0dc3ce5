"""Rows on disk give the same results as rows in memory, are written once, and continue after an
interruption."""

import json
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.config.trial import DataConfig
from medray.data import dataset, duplicates, examples, minhash, reading
from medray.data.dataset import Dataset
from medray.data.examples import Examples
from medray.data.meter import Meter
from medray.errors import DataError
from medray.evaluation.metrics import constant_f1
from medray.types import Example, Mention, Message

SOME = [
    Example("a", "one \ud800 text", ("x", "y"), "train", {"year": "1991"}, "f:1"),
    Example("b", "fever", (), None, {}, "f:2", (Mention(0, 5, "fever", "Disease", 0.5),)),
    Example(
        "c",
        "",
        ("x",),
        None,
        {"b": "2", "a": "1"},
        "f:3",
        (),
        (Message("user", "why?"),),
        "because",
    ),
]


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every data set as large, in pieces of a few rows."""
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(examples, "BATCH", 16)


def file(folder: Path, num: int = 90) -> Path:
    draw = random.Random(3)
    words = [[f"w{draw.randrange(300)}" for _ in range(60)] for _ in range(num)]
    words[7], words[17] = words[5], [*words[16][:-1], "changed"]
    path = folder / "rows.jsonl"
    examples = [
        {
            "id": f"r{n}",
            "text": " ".join(text),
            "label": "abc"[n % 3],
            "hospital": f"h{n % 11}",
            "side": "train" if n % 4 else "test",
        }
        for n, text in enumerate(words)
    ]
    path.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                *examples,
                {"id": "void", "text": " ", "label": "a", "hospital": "h0", "side": "test"},
            ]
        )
    )
    return path


def load(path: Path, settings: dict[str, Any]) -> Dataset:
    own = {"split": "side"} if settings.get("split", {}).get("kind") == "given" else {}
    task_rows = [
        Example(f"own{n}", f"brought text {n}", ("a",), side)
        for n, side in enumerate(("train", "validation", "test"))
    ]
    config = DataConfig.model_validate(
        {"format": {"name": "jsonl", "path": str(path), "id": "id", **own}, **settings}
    )
    return dataset.load(config, lambda num: task_rows if num > 30 else [])


def results_of(data: Dataset) -> dict[str, Any]:
    return {
        "prints": (data.fingerprint, data.split_fingerprint),
        "rows": [list(rows) for rows in (data.train, data.validation, data.unlabelled_test())],
        "splits": data.splits,
        "aside": data.set_aside,
        "labels": data.label_sets(),
        "lengths": (
            lengths := data.count(
                "counting", lambda some: [len(example.text) for example in some]
            ).tolist()
        ),
        "audit": data.audit({"m": lengths}, 40, constant_f1).as_dict(),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit": 20, "evaluation_rows": 6},
        {"split": {"kind": "given"}},
        {"split": {"kind": "grouped", "group": "hospital"}},
        {"split": {"kind": "kfold", "fold": 1}, "corrections": "corrections.csv"},
    ],
)
def test_rows_on_disk_give_every_figure_that_rows_in_memory_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    (tmp_path / "corrections.csv").write_text("id,label\nr4,c\nr7,a\n")
    if "corrections" in settings:
        settings = settings | {"corrections": str(tmp_path / "corrections.csv")}
    path = file(tmp_path)
    light = load(path, settings)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(examples, "BATCH", 16)
    monkeypatch.setattr(minhash, "sign_table", _here)
    heavy = load(path, settings)
    assert isinstance(heavy.train, Examples)
    assert isinstance(light.train, list)
    assert results_of(heavy) == results_of(light)
    assert results_of(load(path, settings)) == results_of(light)  # from the cache


def _here(path: Path, num_rows: int, width: int, progress: Meter) -> minhash.Signatures:
    """Sign in this process, since starting others takes seconds."""
    return minhash.Signatures([minhash.Signer().sign(Examples.open(path).texts(), width)])


def test_examples_come_back_from_disk_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "BATCH", 2)
    examples.write(SOME, tmp_path / "rows.arrow")
    on_disk = Examples.open(tmp_path / "rows.arrow")
    assert list(on_disk) == SOME == on_disk
    assert [on_disk[0], on_disk[-1], *on_disk[1:]] == [SOME[0], SOME[2], *SOME[1:]]
    assert list(on_disk.take([2, 0, 1, 0])) == [SOME[2], SOME[0], SOME[1], SOME[0]]
    assert list(on_disk.texts()) == [example.text for example in SOME]
    assert on_disk.texts()[1] == "fever"
    assert [(row.id, row.text, row.labels, dict(row.metadata)) for row in on_disk.outlines("a")][
        2
    ] == ("c", "", ("x",), {"a": "1"})
    assert list(on_disk.without_answers().followed_by(SOME[:1])) == [
        *(example.without_answer() for example in SOME),
        SOME[0],
    ]
    assert [row.labels for row in on_disk[1:].with_labels({0: ("new",)})] == [("new",), ("x",)]
    assert pickle.loads(pickle.dumps(on_disk[1:])) == SOME[1:]
    with pytest.raises(IndexError, match="example 3 of 3"):
        on_disk[3]


@pytest.mark.usefixtures("on_disk")
def test_rows_are_read_once_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, 20)
    config = DataConfig.model_validate(
        {"format": {"name": "jsonl", "path": str(path), "id": "id"}}
    ).format
    first = list(reading.load(config).examples)
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda options: pytest.fail("the rows are in the cache"))
    again = reading.load(config)
    assert (list(again.examples), list(again.empty_ids)) == (first, ["void"])
    monkeypatch.setattr(reading, "read", read)
    path.write_text(path.read_text().replace("w1", "w999", 1))
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert list(reading.load(config).examples) != first


@pytest.mark.usefixtures("on_disk")
def test_an_id_used_twice_is_reported_with_both_places_and_nothing_is_cached(
    tmp_path: Path,
) -> None:
    path = file(tmp_path, 20)
    path.write_text(path.read_text() + '{"id": "r3", "text": "again", "label": "a"}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl:22: id 'r3' is used twice, first at .*rows\.jsonl:4"
    ):
        load(path, {})
    assert not list((tmp_path / "cache" / "rows").glob("*/*.arrow"))


def test_processes_sign_pieces_once_and_an_interrupted_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minhash, "PIECE", 25)
    draw = random.Random(0)
    rows = [
        Example(str(n), " ".join(f"w{draw.randrange(50)}" for _ in range(8))) for n in range(40)
    ]
    path = tmp_path / "rows.arrow"
    examples.write(rows, path)
    progress = Meter(len(rows), lambda line: None)
    signatures = minhash.sign_table(path, len(rows), 4, progress, cores=2)
    own = minhash.Signatures([minhash.Signer().sign([row.text for row in rows], 4)])
    assert progress.count == len(rows)
    for band in range(own.num_bands):
        assert np.array_equal(signatures.band(band), own.band(band))
    assert np.array_equal(np.array(signatures.digest()), np.array(own.digest()))
    first, second = sorted((tmp_path / "signed-32").iterdir())
    mtime = first.stat().st_mtime_ns
    second.unlink()
    again = minhash.sign_table(path, len(rows), 4, Meter(len(rows), lambda line: None))
    assert (first.stat().st_mtime_ns, second.exists()) == (mtime, True)
    assert np.array_equal(again.band(5), own.band(5))


def test_a_process_that_ends_early_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the worker that signs rows from 0 on ended with status 1"):
        minhash.sign_table(tmp_path / "nothing.arrow", 10, 4, Meter(10, lambda line: None), cores=1)


def test_planted_near_duplicates_are_found_and_no_others() -> None:
    draw = random.Random(2)
    vocabulary = [f"w{n}" for n in range(3000)]
    texts, copies = [], []
    for n in range(600):
        words = draw.choices(vocabulary, k=200)
        texts.append(" ".join(words))
        if n % 3 == 0:  # 4 words of 200: 180 of 212 shingles
            near, far = list(words), list(words)
            for place in range(20, 180, 40):
                near[place] = "changed"
            for place in range(5, 200, 12):
                far[place] = "changed"
            copies.append([len(texts) - 1, len(texts)])
            texts += [" ".join(near), " ".join(far)]
    assert duplicates.find(texts, 0.8).near == copies


def test_a_template_that_thousands_filled_in_is_not_compared_pair_by_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "_MAX_COMPARISONS", 20)
    draw = random.Random(1)
    form = [f"form{n}" for n in range(60)]
    texts = [
        " ".join([*form, *(f"w{draw.randrange(9999)}" for _ in range(60))]) for _ in range(400)
    ]
    pairs = []
    overlap = duplicates.jaccard
    monkeypatch.setattr(duplicates, "jaccard", lambda *pair: pairs.append(1) or overlap(*pair))
    comparison = duplicates.TextMatcher(texts, np.arange(400), 0.8)
    comparison.join(list(range(400)))  # as if all of them shared a band
    assert 400 < len(pairs) <= 400 * 20
    assert comparison.parents == list(range(400))


def test_while_rows_are_read_their_number_is_guessed_from_the_bytes(tmp_path: Path) -> None:
    path = file(tmp_path, 3000)
    config = DataConfig.model_validate(
        {"format": {"name": "jsonl", "path": str(path), "id": "id"}}
    ).format
    progress = Meter.idle()
    rows = reading.RowChecker(config, progress, path.stat().st_size).rows()
    for _ in range(1500):
        next(rows)
    assert progress.total == pytest.approx(3000, rel=0.3)
    assert len(list(rows)) == 1500
    assert progress.count == 3001  # the one without a text too


def test_the_stamp_of_a_data_set_covers_its_files_and_no_option_that_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, truth = tmp_path / "rows.json", tmp_path / "truth.json"
    rows.write_text("{}")
    truth.write_text("{}")
    (tmp_path / "label").write_text("a file that has a column's name")
    monkeypatch.chdir(tmp_path)
    config = DataConfig.model_validate(
        {
            "format": {
                "name": "delimited",
                "path": str(rows),
                "label": "label",
                "label_separator": "/",
            }
        }
    )
    assert [part.split()[0] for part in reading.stamp_of(config.format).parts[2:]] == [str(rows)]
    config = DataConfig.model_validate(
        {
            "format": {
                "name": "pubmedqa",
                "path": str(rows),
                "separator": ".",
                "ground_truth": str(truth),
            }
        }
    )
    before = reading.stamp_of(config.format)
    assert [part.split()[0] for part in before.parts[2:]] == [str(rows), str(truth)]
    truth.write_text('{"1": "yes"}')
    assert reading.stamp_of(config.format) != before


def test_signatures_hold_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "PIECE", 2)
    path = tmp_path / "rows.arrow"
    examples.write([Example(str(n), f"text of row {n}") for n in range(40)], path)
    before = len(os.listdir("/proc/self/fd"))
    signatures = minhash.sign_table(path, 40, 4, Meter(40, lambda line: None), cores=1)
    assert len(signatures.band(0)) == 40
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_a_missing_group_column_is_reported_with_the_existing_ones(
    on_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minhash, "sign_table", _here)
    with pytest.raises(
        DataError,
        match=(
            r"has no metadata 'hospitel' \(data\.split\.group\); allowed: .*hospital.*did you mean "
            r"'hospital'"
        ),
    ):
        load(file(tmp_path), {"split": {"kind": "grouped", "group": "hospitel"}})
