"""Writes TensorBoard files while a study runs: each trial's metrics by step, and its settings for
the hparams tab."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from medray.evaluation.metrics import higher_is_better
from medray.records import Evaluation, TrialRecord

FOLDER = "tensorboard"
_PLUGIN = "hparams"


class TensorBoard:
    """Watches the search. It writes no summary of the experiment, since TensorBoard derives one
    from the trials of one or more runs."""

    def __init__(self, run_dir: Path, metric: str) -> None:
        self.folder, self.metric = run_dir / FOLDER, metric
        self._writers: dict[str, Any] = {}
        self._best: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self._writers.values():
            with suppress(OSError):  # other writers report a full disk
                writer.close()

    def on_num_trials(self, num_trials: int) -> None:
        """Write nothing, since no trial has begun."""

    def on_trial_start(self, record: TrialRecord) -> None:
        """Write nothing; the first metric creates the trial's file."""

    def on_trial_report(self, record: TrialRecord, evaluation: Evaluation) -> None:
        writer = self._writer(record)
        figures = {
            "training/loss": evaluation.train_loss,
            "training/seconds": evaluation.seconds,
            "training/tokens_per_s": evaluation.tokens_per_s,
            **{f"validation/{name}": value for name, value in evaluation.metrics.items()},
        }
        for name, value in figures.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, evaluation.step)
        value = evaluation.metrics[self.metric]
        if math.isfinite(value):
            best = max if higher_is_better(self.metric) else min
            self._best[record.trial] = best(value, self._best.get(record.trial, value))
            writer.add_scalar(f"best/{self.metric}", self._best[record.trial], evaluation.step)
        writer.flush()

    def on_trial_end(self, record: TrialRecord) -> None:
        writer = self._writers.pop(record.trial, None)
        if writer is not None:
            _summarize(
                writer,
                "session_end_info",
                status=2 if record.status == "failed" else 1,
                end_time_secs=record.ended_at or 0.0,
            )
            writer.close()

    def _writer(self, record: TrialRecord) -> Any:
        from tensorboardX import SummaryWriter

        if record.trial not in self._writers:
            writer = self._writers[record.trial] = SummaryWriter(
                str(self.folder / record.trial), write_to_disk=True
            )
            settings = {"base_model": record.base_model, **record.settings}
            _summarize(
                writer,
                "session_start_info",
                settings,
                group_name=record.trial,
                start_time_secs=record.started_at or 0.0,
            )
        return self._writers[record.trial]


def _summarize(
    writer: Any, name: str, settings: Mapping[str, Any] | None = None, **content: Any
) -> None:
    """Write a summary in the form of TensorBoard's own hparams API. tensorboardX writes one
    experiment per trial instead, of which TensorBoard shows only the first."""
    from tensorboardX.proto import plugin_hparams_pb2, summary_pb2

    kinds = {
        "session_start_info": plugin_hparams_pb2.SessionStartInfo,
        "session_end_info": plugin_hparams_pb2.SessionEndInfo,
    }
    session = kinds[name](**content)
    for path, value in (settings or {}).items():
        field = (
            "bool_value"
            if isinstance(value, bool)
            else "number_value"
            if isinstance(value, (int, float))
            else "string_value"
        )
        setattr(session.hparams[path], field, value if field != "string_value" else str(value))
    data = plugin_hparams_pb2.HParamsPluginData(version=0, **{name: session})
    plugin = summary_pb2.SummaryMetadata.PluginData(
        plugin_name=_PLUGIN, content=data.SerializeToString()
    )
    entry = summary_pb2.Summary.Value(
        tag=f"_hparams_/{name}", metadata=summary_pb2.SummaryMetadata(plugin_data=plugin)
    )
    writer.file_writer.add_summary(summary_pb2.Summary(value=[entry]))
