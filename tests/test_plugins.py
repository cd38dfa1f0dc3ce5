import pytest

from medray import plugins
from medray.errors import ConfigError


def test_the_files_of_a_folder_are_the_plugins_except_the_contract_and_private_ones():
    plugin_names = plugins.names("tasks")
    assert "classification" in plugin_names
    assert "base" not in plugin_names
    assert not [name for name in plugin_names if name.startswith("_")]


def test_find_returns_the_module_of_that_name():
    assert plugins.find("tasks", "classification").__name__ == "medray.tasks.classification"


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(
        ConfigError,
        match=r"tasks: 'clasification' is not known; allowed: .*did you mean 'classification'\?",
    ):
        plugins.find("tasks", "clasification")


@pytest.mark.parametrize("name", ["base", "_pieces", "../errors", "classification.Task", ""])
def test_what_is_no_plugin_cannot_be_reached(name):
    with pytest.raises(ConfigError, match="is not known"):
        plugins.find("tasks", name)
