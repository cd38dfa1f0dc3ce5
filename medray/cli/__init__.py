from medray.cli.main import main

__all__ = ["main"]
