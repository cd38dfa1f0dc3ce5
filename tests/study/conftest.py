from support.chaos import small, undisturbed_figures, undisturbed_figures_of_two  # noqa: F401  (fixtures)
