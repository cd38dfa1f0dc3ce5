"""The edits of tests/mutations.py still fit: each stands once in its file, and changes it. Whether
a test sees them is for that script."""

import pytest
from mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_a_mutation_changes_stands_once_in_its_file(mutation: Mutation) -> None:
    assert (ROOT / mutation.path).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert (ROOT / mutation.tests.split()[0]).exists()
