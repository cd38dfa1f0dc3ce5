import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import run_files

from medray.reports.tensorboard import TensorBoard


def values(folder: Path) -> Iterator[tuple[int, Any]]:
    """Step and value of everything in a folder's files: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in folder.glob("events.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            yield from ((event.step, value) for value in event.summary.value)
            at += length + 16


@pytest.mark.document("002", "curves in TensorBoard", where="`tensorboard` of a run")
def test_every_trial_has_its_curve_and_its_settings(tmp_path: Path) -> None:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    trials = run_files.trials(num_each=2, num_failed=1)
    with TensorBoard(tmp_path, "f1_binary") as board:
        for record, history in trials:
            board.on_trial_start(record)
            for line in history:
                board.on_trial_report(record, line)
            board.on_trial_end(record)
    for record, history in trials:
        points = list(values(tmp_path / "tensorboard" / record.trial))
        curve = [
            (step, value.simple_value)
            for step, value in points
            if value.tag == "validation/f1_binary"
        ]
        assert curve == [(line.step, pytest.approx(line.metrics["f1_binary"])) for line in history]
        best = [value.simple_value for _, value in points if value.tag == "best/f1_binary"]
        losses = [value.simple_value for _, value in points if value.tag == "training/loss"]
        assert losses == [pytest.approx(line.train_loss) for line in history]
        assert best == [
            pytest.approx(max(other.metrics["f1_binary"] for other in history[: at + 1]))
            for at, _ in enumerate(history)
        ]
        if history:
            sessions = [
                HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for _, value in points
                if value.tag.startswith("_hparams_")
            ]
            assert (
                dict(sessions[0].session_start_info.hparams)["lora.r"].number_value
                == record.settings["lora.r"]
            )
            assert (
                dict(sessions[0].session_start_info.hparams)["base_model"].string_value
                == record.base_model
            )
            assert sessions[1].session_end_info.status == 1


def test_a_figure_that_is_no_number_is_left_out_of_the_curve(tmp_path: Path) -> None:
    record, history = run_files.trials()[0]
    with TensorBoard(tmp_path, "f1_binary") as board:
        board.on_trial_report(
            record, replace(history[0], metrics={**history[0].metrics, "f1_binary": float("nan")})
        )
        board.on_trial_end(record.model_copy(update={"status": "failed"}))
    tags = {value.tag for _, value in values(tmp_path / "tensorboard" / record.trial)}
    assert "validation/accuracy" in tags
    assert not {"validation/f1_binary", "best/f1_binary"} & tags
