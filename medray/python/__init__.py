"""The Python API above the parts of medray: studies, their results, a classifier, a service."""
