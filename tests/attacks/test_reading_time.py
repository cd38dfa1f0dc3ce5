"""The time to read input grows no faster than the input."""

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medray.config import files
from medray.config.load import plugin_options
from medray.data import minhash
from medray.data.formats import delimited, jsonl, raw_abstracts
from medray.errors import ConfigError, DataError
from medray.tasks.base import labels
from medray.tasks.extraction import json_list
from medray.tasks.instruct import figures
from medray.tasks.instruct.safety import is_refusal
from medray.text import csv_text, language


def parse_file(content: str) -> None:
    with contextlib.suppress(DataError):
        raw_abstracts.parse(
            io.StringIO(content),
            "a.txt",
            "a",
            raw_abstracts.Options(name="raw_abstracts", path="a"),
        )


def table(content: str) -> None:
    for row in csv_text.read_rows(io.StringIO(content, newline=""), ","):
        csv_text.restore_cell(row.reason)


def header(content: str, folder: Path) -> None:
    (folder / "wide.csv").write_text(content)
    with pytest.raises(DataError):
        list(delimited.read(delimited.Options(name="delimited", path=str(folder / "wide.csv"))))


def options(content: str, _: Path) -> None:
    with pytest.raises(ConfigError):
        plugin_options("data.formats", f"name=jsonl,path={content}")


def study(content: str, folder: Path) -> None:
    (folder / "study.yaml").write_text(content[: 200 << 10])
    files.read_yaml(folder / "study.yaml")


def different(content: str, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match="different names"):
        jsonl.sniff(folder / "rows.jsonl")


def alone(run: Callable[[str], Any]) -> Callable[[str, Path], Any]:
    return lambda content, _: run(content)


SCANNERS: dict[str, tuple[Callable[[str, Path], Any], Callable[[int], str]]] = {
    "id of an abstract": (alone(parse_file), lambda n: "<ID:" + " " * n + "x"),
    "id that closes": (alone(parse_file), lambda n: "<ID:" + " x" * (n // 2) + ">"),
    "keys of an abstract": (alone(parse_file), lambda n: "<ID:1>\n" + "Aa b-" * (n // 5) + ": x"),
    "lines of an abstract": (
        alone(parse_file),
        lambda n: "<ID:1>\nTitle: a\n" + "A: b\n" * (n // 5),
    ),
    "quotes": (alone(table), lambda n: '"' * n),
    "quotes and text": (alone(table), lambda n: 'a,"b"c\n' * (n // 7)),
    "open quote": (alone(table), lambda n: 'a,b\nc,"' + "d\n" * (n // 2)),
    "escaped quotes": (alone(table), lambda n: 'a,b\nc,"' + '""' * (n // 2) + "x"),
    "fields, then an open quote": (alone(table), lambda n: '"a",' * (n // 4) + '"'),
    "columns": (header, lambda n: "a," * (n // 2)),
    "rows of different names": (
        different,
        lambda n: "".join(f'{{"k{number}": 1}}\n' for number in range(2000 + n // 14)),
    ),
    "apostrophes of a cell": (alone(csv_text.restore_cell), lambda n: "'" * n),
    "number in a cell": (alone(csv_text.restore_cell), lambda n: "'-" + "1" * n + "x"),
    "blanks in a cell": (alone(csv_text.restore_cell), lambda n: "'-1" + " " * n + "x"),
    "commas of options": (options, lambda n: "," * n),
    "brackets of options": (options, lambda n: "[," * (n // 2)),
    "keys of settings": (study, lambda n: "".join(f"k{number}: 1\n" for number in range(n // 160))),
    "language": (alone(language.guess), lambda n: "a b1 " * (n // 5)),
    "normal form": (alone(minhash.normalize), lambda n: "ﷺ" * (n // 18)),
    "list in quotes": (alone(json_list.read), lambda n: '["' + '" ' * (n // 2)),
    "list with apostrophes": (alone(json_list.read), lambda n: "['" + "' x" * (n // 3)),
    "list with escapes": (alone(json_list.read), lambda n: '["' + "\\a" * (n // 2)),
    "list of words": (alone(json_list.read), lambda n: "[" + "a b " * (n // 4)),
    "list of objects": (alone(json_list.read), lambda n: "[{" + '"a" ' * (n // 4) + "}"),
    "brackets": (alone(json_list.read), lambda n: "[" * n),
    "mention in its text": (
        alone(lambda text: json_list.ground(text, [json_list.Item("a a-b")], ["x"])),
        lambda n: "a -" * (n // 3),
    ),
    "refusal": (alone(is_refusal), lambda n: "i cannot safely " * (n // 16)),
    "apologies": (alone(is_refusal), lambda n: "sorry. " * (n // 7)),
    "quoted refusal": (alone(is_refusal), lambda n: '"' + "a" * n),
    "words": (alone(figures.words), lambda n: "a'" * (n // 2)),
    "label in an answer": (
        alone(lambda text: labels.first_label(text, ["lung cancer"])),
        lambda n: "lung " * (n // 5),
    ),
}


@pytest.mark.parametrize("name", SCANNERS)
def test_time_grows_no_faster_than_what_is_read(name: str, tmp_path: Path) -> None:
    run, make = SCANNERS[name]
    seconds: list[float] = []
    for size in (1 << power for power in range(10, 21)):
        content = make(size)
        seconds.append(cpu_seconds(run, content, tmp_path))
        if len(seconds) > 2 and seconds[-3] > 0.01 and seconds[-1] > 9 * seconds[-3]:
            # Four times as long takes four times as much; sixteen times would be quadratic.
            again = range(2 if seconds[-1] < 2 else 0)  # a neighbour may have taken the caches
            least = min([seconds[-1], *(cpu_seconds(run, content, tmp_path) for _ in again)])
            assert least < 9 * seconds[-3], (
                f"{size} characters: {least:.3f} s, a quarter of them {seconds[-3]:.3f} s"
            )


def cpu_seconds(run: Callable[[str, Path], Any], content: str, folder: Path) -> float:
    start = time.thread_time()
    run(content, folder)
    return time.thread_time() - start
