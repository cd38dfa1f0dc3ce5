from medray.tasks.extraction.task import Options, Task

__all__ = ["Options", "Task"]
