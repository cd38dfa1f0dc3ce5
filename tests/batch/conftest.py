from support.batches import runs  # noqa: F401  (a fixture)
