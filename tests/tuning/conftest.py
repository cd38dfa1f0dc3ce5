from chaos import undisturbed  # noqa: F401  (a fixture)
