import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import medray.data.formats
from medray import plugins
from medray.config.familiar import FAMILIAR
from medray.config.load import dump_settings, load_study, plugin_options
from medray.config.study import StudyConfig
from medray.errors import ConfigError, DataError, nearest_file, suggest

STUDY = """
name: study
data: {format: {name: throwaway, path: notes.txt}}
task: {name: classification, positive_label: cancer}
base_models:
  - source: small
    overrides: {lora.r: 8, train.epochs: 1}
  - source: large
    revision: abc
train: {epochs: 2, learning_rate: 1e-4}
"""
PLUGIN = """
from typing import Literal
from medray.config.schema import PluginOptions, Section
class Inner(Section):
    depth: int = 1
class Options(PluginOptions):
    name: Literal["throwaway"]
    path: str
    inner: Inner = Inner()
"""


@pytest.fixture(autouse=True)
def throwaway_format(tmp_path, monkeypatch):
    """Add a file to the folder of formats, which is enough to register its plugin."""
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "throwaway.py").write_text(PLUGIN)
    monkeypatch.setattr(
        medray.data.formats, "__path__", [*medray.data.formats.__path__, str(folder)]
    )
    importlib.invalidate_caches()
    yield
    sys.modules.pop("medray.data.formats.throwaway", None)


@pytest.fixture
def load(tmp_path):
    def load(*overrides: str, overlay: str | None = None, study: str = STUDY) -> StudyConfig:
        paths = [tmp_path / "study.yaml"]
        paths[0].write_text(study)
        if overlay is not None:
            paths.append(tmp_path / "overlay.yaml")
            paths[1].write_text(overlay)
        return load_study(paths, overrides)

    return load


@pytest.fixture
def refusal(load):
    def refusal(*overrides: str, **files: str) -> str:
        with pytest.raises(ConfigError) as error:
            load(*overrides, **files)
        return str(error.value)

    return refusal


def test_a_study_loads_with_the_options_of_its_plugins(load):
    study = load()
    assert study.task.positive_label == "cancer"
    assert study.data.format.inner.depth == 1
    assert study.train.learning_rate == 1e-4  # which YAML 1.1 reads as text


def test_an_unknown_key_names_the_nearest_valid_one(refusal):
    assert "train.epoch: unknown key; allowed: epochs" in refusal("train.epoch=3")
    assert "did you mean 'source'?" in refusal("base_models.1.sourc=x")


def test_all_mistakes_are_listed_at_once_with_their_dotted_paths_also_inside_plugins(refusal):
    message = refusal(
        "data.format.pat=3",
        "data.format.inner.dept=2",
        "lora.r=x",
        "task.metrik=f1",
        "train.warmup_steps=-1",
    )
    for line in [
        "data.format.pat: unknown key; allowed: inner, name, path; did you mean 'path'?",
        "data.format.inner.dept: unknown key; allowed: depth; did you mean 'depth'?",
        "lora.r: input should be a valid integer, unable to parse string as an integer, found 'x'",
        "task.metrik: unknown key; ",
        "train.warmup_steps: input should be greater than or equal to 0, found -1",
    ]:
        assert line in message
    assert len(message.splitlines()) == 5


def test_a_missing_setting_is_called_required(refusal):
    message = refusal(study="name: study\ndata: {format: {name: throwaway}}\n")
    assert "data.format.path: is required and was not given" in message
    assert "base_models: is required and was not given" in message


def test_an_unknown_plugin_names_the_nearest_and_a_nameless_one_lists_the_choice(refusal):
    assert "task.name: tasks: 'clasification' is not known;" in refusal("task.name=clasification")
    assert "task: needs a `name`, one of: " in refusal("task=3")


def test_the_members_of_a_union_do_not_show_in_the_path(refusal):
    message = refusal("task.class_weights={cancer: -1}")
    assert "task.class_weights.cancer: input should be greater than 0, found -1" in message
    assert "dict[" not in message


def test_later_files_win_over_earlier_ones_and_settings_over_files(load):
    overlay = "train: {epochs: 5, weight_decay: 0.5}\nlora: {r: 4}\n"
    study = load("train.epochs=7", "train.epochs=9", "lora.dropout=0.2", overlay=overlay)
    assert (study.train.epochs, study.train.weight_decay, study.train.learning_rate) == (
        9,
        0.5,
        1e-4,
    )
    assert (study.lora.r, study.lora.dropout) == (4, 0.2)


def test_a_setting_may_be_a_list_a_mapping_or_null_and_reach_into_lists(load):
    study = load(
        "lora.targets=[query, value]",
        "base_models.1.source=huge",
        "base_models.0.overrides={seed: 3}",
        "train.max_grad_norm=null",
    )
    assert study.lora.targets == ("query", "value")
    assert [base.source for base in study.base_models] == ["small", "huge"]
    assert study.base_models[0].overrides == {"seed": 3}
    assert study.train.max_grad_norm is None


@pytest.mark.parametrize("override", ["train.epochs", "=3", ""])
def test_a_setting_without_key_or_sign_is_refused(refusal, override):
    assert "is not of the form key=value" in refusal(override)


def test_the_error_of_a_setting_outside_the_tree_names_the_place(refusal):
    assert "'7' is not a position in a list of 2 (0 to 1)" in refusal("base_models.7.source=x")
    assert "goes through 'r', which is 4" in refusal("lora.r.x=1", overlay="lora: {r: 4}")
    assert "the value is not valid YAML" in refusal("lora.targets=[a")


def test_a_truth_value_where_text_belongs_explains_the_yaml_trap(refusal):
    message = refusal(study=STUDY.replace("positive_label: cancer", "positive_label: yes"))
    assert (
        "task.positive_label: must be text, found True; YAML reads yes, no, on and off as true "
        "and false: put it in quotes"
    ) in message
    assert "must be text, found False" in refusal("task.class_weights={no: 2}")


def test_the_error_of_a_number_instead_of_text_shows_the_quotes(refusal):
    message = refusal("task.positive_label=1")
    assert (
        "task.positive_label: must be text, found a number; "
        """put it in quotes: "1", in a shell 'task.positive_label="1"'""" in message
    )
    assert """in a shell 'base_models.0.source="2.5"'""" in refusal("base_models.0.source=2.5")


def test_a_key_inside_a_section_that_may_be_left_out_or_be_a_word_is_named(refusal):
    assert "publish.nmae: unknown key; allowed: alias, allow_worse" in refusal(
        "publish={name: a, nmae: b}"
    )
    assert "search.tie.ratio: unknown key; allowed: parameters" in refusal("search.tie={ratio: 2}")
    assert "search.tie: input should be 'best', found 'first'" in refusal("search.tie=first")


def test_a_quoted_yes_is_a_label(load):
    assert (
        load(
            study=STUDY.replace("positive_label: cancer", "positive_label: 'yes'")
        ).task.positive_label
        == "yes"
    )


def test_a_key_given_twice_is_refused(refusal):
    assert "the key 'train' is given twice" in refusal(study=STUDY + "train: {epochs: 3}\n")
    assert "the key 'r' is given twice" in refusal(overlay="lora: {r: 1, alpha: 2, r: 3}")


def test_a_file_that_is_no_mapping_of_settings_is_an_error(refusal, tmp_path):
    assert "must be a mapping of settings, found list" in refusal(overlay="[1]")
    assert "must be a mapping of settings, found NoneType" in refusal(overlay="")
    assert "not valid YAML" in refusal(overlay="a: [")
    assert "not valid YAML" in refusal(overlay="? [1]\n: 2")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_study([tmp_path / "none.yaml"])


def test_epochs_and_max_steps_exclude_each_other_and_one_is_needed(load, refusal):
    both = "train: epochs 2 and max_steps 30: give exactly one of the two"
    assert both in refusal("train.epochs=2", "train.max_steps=30")
    assert both in refusal(overlay="train: {epochs: 2, max_steps: 30}")
    assert "train: epochs None and max_steps None: give exactly one of the two" in refusal(
        "train.epochs=null"
    )


def test_a_later_layer_gives_epochs_where_an_earlier_one_gave_steps_and_the_other_way_round(load):
    steps = load("train.max_steps=30", "train.warmup_ratio=0.2")
    assert (steps.train.epochs, steps.train.max_steps) == (None, 30)
    epochs = load("train.epochs=4", overlay="train: {max_steps: 30, warmup_steps: 3}")
    assert (epochs.train.epochs, epochs.train.max_steps, epochs.train.warmup_steps) == (4, None, 3)
    assert (
        load("train.warmup_ratio=0.2", overlay="train: {warmup_steps: 3}").train.warmup_steps
        is None
    )
    assert steps.trial(steps.base_models[0], {"train.epochs": 9}).train.max_steps is None


def test_the_rules_of_a_split_name_both_settings(refusal):
    assert "validation 0.5 and test 0.5 leave no rows for training" in refusal(
        "data.split.validation=0.5", "data.split.test=0.5"
    )
    assert "kind 'grouped' and group None" in refusal("data.split.kind=grouped")
    assert "fold 5 is not one of 0 to folds - 1 = 4" in refusal(
        "data.split.kind=kfold", "data.split.fold=5"
    )


def test_an_unknown_strategy_is_refused_at_load(refusal):
    assert "training.strategies: 'tor' is not known" in refusal("train.strategy=tor")


def test_overrides_of_a_base_model_reach_its_trial_and_no_other(load):
    study = load("lora.alpha=64")
    small, large = (study.trial(base) for base in study.base_models)
    assert (small.model.source, small.lora.r, small.train.epochs, small.lora.alpha) == (
        "small",
        8,
        1,
        64,
    )
    assert (large.model.source, large.model.revision, large.lora.r, large.train.epochs) == (
        "large",
        "abc",
        16,
        2,
    )


def test_what_a_search_sampled_wins_over_the_base_model_and_is_validated(load):
    study = load()
    assert study.trial(study.base_models[0], {"lora.r": 32, "task.max_length": 128}).lora.r == 32
    with pytest.raises(
        ConfigError, match=r"base model small: lora\.rank: unknown key; write lora\.r=16"
    ):
        study.trial(study.base_models[0], {"lora.rank": 32})


def test_unknown_paths_in_overrides_are_refused_at_load_for_every_base_model(refusal):
    message = refusal(
        "base_models.0.overrides={lora.rank: 3}",
        "base_models.1.overrides={task.metrik: x, storage_path: y}",
    )
    assert "base model small: lora.rank: unknown key" in message
    assert "task.metrik: unknown key" in message
    assert "storage_path: unknown key" in message


def test_making_a_trial_leaves_the_study_as_it_was(load):
    study = load("base_models.0.overrides={lora: {r: 4}, lora.alpha: 3}")
    before = dump_settings(study)
    assert study.trial(study.base_models[0]).lora.alpha == 3
    assert dump_settings(study) == before


def test_configurations_are_frozen(load):
    study = load()
    for section, name in [
        (study, "name"),
        (study.lora, "r"),
        (study.task, "metric"),
        (study.data.format, "path"),
    ]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, "x")


def test_configurations_and_errors_pickle(load, refusal):
    study = load()
    trial = study.trial(study.base_models[0])
    assert pickle.loads(pickle.dumps(study)) == study
    assert pickle.loads(pickle.dumps(trial)) == trial
    for error in [ConfigError(refusal("lora.r=x")), DataError("notes.txt:3: no label")]:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_a_dumped_study_loads_as_the_same_study(load):
    assert load(study=dump_settings(load())) == load()


def test_a_study_of_an_earlier_medray_loads_and_one_that_sets_8_bits_gets_an_error(load, refusal):
    assert (
        load("publish={name: cancer, int8: auto}")
        == load("publish={name: cancer, int8: never}")
        == load("publish.name=cancer")
    )
    assert "publish: int8 'always': answers in 8 bits are gone" in refusal(
        "publish={name: cancer, int8: always}"
    )


@pytest.mark.parametrize("name", ["delimited", "jsonl", "tables", "hub"])
def test_a_study_whose_text_is_made_by_a_template_has_trials_and_loads_again(load, name):
    template = "Q: {question}"
    study = load(f"data.format={{name: {name}, path: rows, template: '{template}'}}")
    assert study.trial(study.base_models[0]).data.format.template == template
    assert load(study=dump_settings(study)) == study


def test_the_json_schema_holds_the_options_of_every_plugin():
    schema = StudyConfig.model_json_schema()
    text = json.dumps(schema)
    for seam in ("tasks", "data.formats"):
        for name in plugins.names(seam):
            for option in plugins.find(seam, name).Options.model_fields:
                assert f'"{option}": {{' in text, f"{seam}: {name}.{option}"
    references = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert "Inner" in references
    assert references <= set(schema["$defs"])


def test_options_of_one_line_are_those_of_the_yaml():
    options = plugin_options("tasks", "name=classification,max_length=64,positive_label=a")
    assert (options.max_length, options.positive_label) == (64, "a")
    with pytest.raises(
        ConfigError, match=r"max_lenght: unknown key; .*did you mean 'max_length'\?"
    ):
        plugin_options("tasks", "name=classification,max_lenght=64")
    with pytest.raises(ConfigError, match="is not of the form"):
        plugin_options("tasks", "classification")


def test_a_wrong_name_is_answered_with_what_is_allowed():
    assert suggest("f1", []) == "nothing is allowed here"
    assert suggest("zzz", ["b", "a"]) == "allowed: a, b"
    assert suggest("x", [f"n{n:02}" for n in range(25)]).endswith("n19 and 5 more")


def test_a_missing_file_is_answered_with_the_nearest_one_or_the_folder_that_is_missing(
    tmp_path, monkeypatch
):
    (tmp_path / "notes.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_file("note.csv") == "; did you mean notes.csv?"
    assert nearest_file(tmp_path / "nots.csv") == f"; did you mean {tmp_path}/notes.csv?"
    assert nearest_file("x") == f"; correct the path, which begins at {tmp_path}"
    assert nearest_file("data/x") == "; there is no folder data, so correct the path"


def test_reading_a_configuration_or_data_or_figures_imports_no_torch():
    program = (
        "import importlib, pkgutil, sys, medray.config.study\n"
        "for seam in ('data', 'tasks', 'evaluation'):\n"
        "    package = importlib.import_module(f'medray.{seam}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'medray.{seam}.'):\n"
        "        importlib.import_module(module.name)\n"
        "print(*sorted({'torch', 'transformers', 'ray', 'peft'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert (process.stdout.strip(), process.returncode) == ("", 0), process.stderr


def test_base_models_of_a_study_cannot_be_given_other_rows_but_may_be_given_fewer(load, refusal):
    assert "compared on the same rows" in refusal("base_models.0.overrides={data.split.seed: 3}")
    study = load("base_models.0.overrides={data.limit: 30}")
    assert [study.trial(base).data.limit for base in study.base_models] == [30, None]


def test_yes_is_no_number(refusal):
    message = refusal("train.epochs=yes", "lora.alpha=off")
    assert "train.epochs: must be a number, found True" in message
    assert "lora.alpha: must be a number, found False" in message


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("batch_size=8", "batch_size: unknown key; write train.samples_per_step=16"),
        ("train.batch_size=8", "train.batch_size: unknown key; write train.samples_per_step=16"),
        ("per_device_train_batch_size=8", "write train.token_budget=4096"),
        ("train.num_train_epochs=2", "train.num_train_epochs: unknown key; write train.epochs=3"),
        ("num_epochs=2", "write train.epochs=3"),
        ("lr=1e-3", "write train.learning_rate=1e-4"),
        ("learning_rate=1e-3", "learning_rate: unknown key; write train.learning_rate"),
        ("model.load_in_4bit=true", "write model.quantization=nf4"),
        ("lora.lora_r=8", "lora.lora_r: unknown key; write lora.r=16"),
        ("max_seq_length=512", "write task.max_length=512"),
        ("model_name=roberta-base", "write base_models: [{source: NAME}]"),
        ("model.name=roberta-base", "model.name: unknown key; write base_models: [{source: NAME}]"),
        ("model=roberta-base", "model: is a section of settings; write base_models: [{source"),
        ("base_models=[roberta-base]", "is a section of settings; write base_models: [{source"),
        ("search.space={lr: {choice: [1, 2]}}", "write train.learning_rate=1e-4"),
    ],
)
def test_a_key_that_other_tools_use_is_answered_with_ours(refusal, setting, advice):
    assert advice in refusal(setting)


def test_advice_for_familiar_keys_names_settings_that_exist(load):
    study = load()
    settings = study.trial(study.base_models[0]).model_dump()
    for key, advice in FAMILIAR.items():
        for setting in re.findall(r"\b(?:train|model|lora|task)\.\w+", advice):
            section, _, name = setting.partition(".")
            assert name in settings[section], f"{key}: {setting}"
