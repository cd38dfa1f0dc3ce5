from support.chaos import small, undisturbed  # noqa: F401  (fixtures)
