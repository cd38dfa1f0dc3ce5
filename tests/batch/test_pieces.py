import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from medray.batch import inputs, pieces, rows
from medray.batch.pieces import Piece
from medray.batch.rows import InputRow
from medray.batch.shards import TextColumns
from medray.data.meter import Meter


def make_rows(*ids: str) -> list[InputRow]:
    return [
        InputRow(row_id, f"text of {row_id}", f"f:{number}") for number, row_id in enumerate(ids, 1)
    ]


def test_repeats_are_all_but_the_first_of_each_id_wherever_they_stand() -> None:
    rng = random.Random(3)
    shards = [[str(rng.randrange(60)) for _ in range(size)] for size in (40, 0, 25)]
    known_ids: set[str] = set()
    repeats: list[list[int]] = []
    for shard in shards:
        repeats.append(
            [
                place
                for place, row_id in enumerate(shard)
                if row_id in known_ids or known_ids.add(row_id)
            ]
        )  # type: ignore[func-returns-value]
    rows_of = [
        np.array([[hash(row_id) & 7, int(row_id)] for row_id in shard], dtype=np.uint64).reshape(
            -1, 2
        )
        for shard in shards
    ]
    assert pieces.repeats(rows_of) == repeats
    assert any(repeats)


def test_ids_are_equal_in_a_scan_where_ids_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\na,one of them\nb,\na,another one\n")
    (shard,) = inputs.find(str(path)).shards
    rows_of = pieces.scan(shard, TextColumns(("text",), "id"), 1000)
    assert pieces.repeats([rows_of.ids]) == [[2]]
    assert (
        len(pieces.scan(shard, TextColumns(("text",), None), 1000).ids)
        == len(list(rows.read(shard, TextColumns(("text",)), 1000)))
        == 3
    )


def test_a_piece_is_as_long_as_asked_and_shorter_where_its_texts_are_long(
    monkeypatch: object,
) -> None:
    rows_of = make_rows(*"abcdefg")
    assert ["".join(row.id for row in piece.rows) for piece in pieces.cut(rows_of, 0, 3, [])] == [
        "abc",
        "def",
        "g",
    ]
    assert [piece.number for piece in pieces.cut(rows_of, 5, 3, [])] == [0, 1, 2]
    long = [replace(row, text="x" * 5_000_000) for row in rows_of[:5]]
    assert [len(piece.rows) for piece in pieces.cut(long, 0, 100, [])] == [2, 2, 1]


def test_a_repeated_id_is_kept_as_a_fault_without_its_text() -> None:
    (piece,) = pieces.cut(make_rows("a", "b", "a"), 0, 10, [2])
    assert [(row.id, row.fault) for row in piece.rows] == [
        ("a", ""),
        ("b", ""),
        ("a", pieces.REPEATED_ID),
    ]
    assert piece.rows[2].text == ""


def test_a_piece_crosses_a_table_unchanged() -> None:
    (piece,) = pieces.cut(make_rows("a", "b"), 3, 10, [])
    assert Piece.of(piece.table().to_pylist()[0]) == piece


def test_small_inputs_still_keep_every_worker_busy_and_large_ones_have_bounded_pieces() -> None:
    assert pieces.num_rows(10, 4) == 64
    assert pieces.num_rows(8000, 4) == 125
    assert pieces.num_rows(10**7, 4) == 4096


def test_progress_tells_the_rate_without_the_time_before_the_first_piece() -> None:
    times = iter([100.0, 110.0])
    lines: list[str] = []
    progress = Meter(1000, lines.append, count=100, clock=lambda: next(times))
    progress.add(100)
    progress.add(300)
    assert lines == ["500 of 1000 rows (50 %), 30.0 rows/s, 0:00:17 left"]
