from pathlib import Path

import pytest

from medray.errors import ConfigError
from medray.study import preflight


def test_a_folder_that_some_node_does_not_see_is_refused_with_what_to_set(tmp_path: Path) -> None:
    views = []

    def look(path: Path) -> dict[str, bool]:
        views.append(path.exists())
        return {"10.0.0.3": False, "10.0.0.2": True}

    with pytest.raises(
        ConfigError,
        match=(
            r"storage_path: .* is a folder of one node: 10\.0\.0\.3 cannot see .* set storage_path "
            r"to a folder that"
        ),
    ):
        preflight.check_folder_on_nodes(tmp_path, look)
    assert views == [True]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_all_nodes_see_passes(tmp_path: Path) -> None:
    preflight.check_folder_on_nodes(
        tmp_path, lambda path: {"10.0.0.2": preflight.sees(path), "10.0.0.3": preflight.sees(path)}
    )
    assert not preflight.sees(tmp_path / "not there", patience_s=0)
