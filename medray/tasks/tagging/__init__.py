from medray.tasks.tagging.task import Options, Task

__all__ = ["Options", "Task"]
