import random
from typing import Any

import pytest
from support import tiny

TABLE_ROWS = 60


@pytest.fixture(scope="session")
def table() -> dict[str, list[Any]]:
    """Columns of texts and of two labels."""
    rng = random.Random(0)
    texts, labels = [], []
    for number in range(TABLE_ROWS):
        label = ("cancer", "other")[number % 2]
        word = "carcinoma" if label == "cancer" else "pressure"
        texts.append(f"{tiny.text(rng, 8)} {word} {number}")
        labels.append(label)
    return {"abstract": texts, "condition": labels}
