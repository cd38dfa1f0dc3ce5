from medray.tasks.instruct.task import Options, Task

__all__ = ["Options", "Task"]
