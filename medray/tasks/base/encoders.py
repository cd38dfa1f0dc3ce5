"""Fits a task to its base model: some tasks are done by encoders with a head, and by decoders
without one. It reads a config.json and no weight."""

from medray.tasks.base.protocol import EncoderTask, Task


def for_base(task: Task, source: str, revision: str | None) -> Task:
    """Return a task as this base model does it."""
    if not isinstance(task, EncoderTask):
        return task
    from medray.models import architecture  # it imports torch

    config, _ = architecture.find(source, revision)
    return task.for_encoder() if architecture.is_encoder(config) else task
