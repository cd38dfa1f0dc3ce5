"""medray: fine-tune base models with LoRA on Ray, select them by F1, serve the winners."""

__version__ = "0.1.0"
