"""The records of a trial keep the bytes of an earlier medray."""

import math

from medray.records import dump_history, parse_history

LINE = (
    '"epoch": 1, "step": 60, "train_loss": 0.7154609200855097, "metrics": {"f1_macro": 0.39, '
    '"log_loss": NaN}, "is_best": true,'
    ' "epochs": 0.5, "is_last": false, "seconds": 3.6, "tokens_per_s": 1286.8271849953917'
)


def test_a_history_is_read_and_written_without_a_change() -> None:
    content = f"[{{{LINE}}}, {{{LINE}}}]".encode()
    history = parse_history(content)
    assert dump_history(history) == content
    assert (history[0].step, history[0].epochs, history[0].is_best) == (60, 0.5, True)
    assert math.isnan(history[0].metrics["log_loss"])


def test_fields_that_an_earlier_medray_wrote_are_no_hindrance() -> None:
    assert parse_history(f'[{{"adapter": "default", {LINE}}}]'.encode())[0].epoch == 1
