"""TensorBoard files of a study while it runs: every trial's figures by step, and its settings for
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
    """A watcher of the search. There is no summary of the whole experiment: TensorBoard reads one
    from the trials, of several runs too."""

    def __init__(self, run_dir: Path, metric: str) -> None:
        self.folder, self.metric = run_dir / FOLDER, metric
        self._writers: dict[str, Any] = {}
        self._best: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self._writers.values():
            with suppress(OSError):  # a disk that is full is told by those who need it
                writer.close()

    def on_num_trials(self, num_trials: int) -> None:
        """Nothing is drawn of what has not begun."""

    def on_trial_start(self, record: TrialRecord) -> None:
        """A trial has a file from its first figure on."""

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
            _summarise(
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
            _summarise(
                writer,
                "session_start_info",
                settings,
                group_name=record.trial,
                start_time_secs=record.started_at or 0.0,
            )
        return self._writers[record.trial]


def _summarise(
    writer: Any, name: str, settings: Mapping[str, Any] | None = None, **content: Any
) -> None:
    """As TensorBoard's own hparams API writes it; tensorboardX's writes one experiment a trial, of
    which TensorBoard takes the first."""
    from tensorboardX.proto import plugin_hparams_pb2, summary_pb2

    kinds = {
        "session_start_info": plugin_hparams_pb2.SessionStartInfo,
        "session_end_info": plugin_hparams_pb2.SessionEndInfo,
    }
    told = kinds[name](**content)
    for path, value in (settings or {}).items():
        field = (
            "bool_value"
            if isinstance(value, bool)
            else "number_value"
            if isinstance(value, (int, float))
            else "string_value"
        )
        setattr(told.hparams[path], field, value if field != "string_value" else str(value))
    data = plugin_hparams_pb2.HParamsPluginData(version=0, **{name: told})
    plugin = summary_pb2.SummaryMetadata.PluginData(
        plugin_name=_PLUGIN, content=data.SerializeToString()
    )
    held = summary_pb2.Summary.Value(
        tag=f"_hparams_/{name}", metadata=summary_pb2.SummaryMetadata(plugin_data=plugin)
    )
    writer.file_writer.add_summary(summary_pb2.Summary(value=[held]))
