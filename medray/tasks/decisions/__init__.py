from medray.tasks.decisions.task import Options, Task

__all__ = ["Options", "Task"]
