from support.chaos import small, undisturbed, undisturbed_of_two  # noqa: F401  (fixtures)
