import pytest

from medray.errors import DataError
from medray.models.batch import check_rows


def test_rows_without_a_token_are_counted() -> None:
    with pytest.raises(DataError, match="1 of 2 inputs have no tokens"):
        check_rows([[5], []])
    check_rows([[5]])
