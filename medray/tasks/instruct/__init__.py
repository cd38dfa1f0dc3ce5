from medray.tasks.instruct.task import Options, Request, Response, Task

__all__ = ["Options", "Request", "Response", "Task"]
