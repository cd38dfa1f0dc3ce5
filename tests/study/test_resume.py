"""Settings that a resume may change, and settings that would mix two studies under one name."""

from pathlib import Path

import pytest
from support import tiny

from medray.errors import ConfigError
from medray.study import resume
from medray.study.run import Run, slugs

RATE = "search.space={train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"


@pytest.mark.parametrize(
    ("settings", "is_more"),
    [
        (["search.num_trials=4"], True),
        (["base_models.0.num_trials=3"], True),
        (["search.num_trials=1"], False),
        (["search.time_s=60"], False),
        (["search.num_finalists=2"], True),
        (["search.num_seeds=3"], True),
        (["search.tie=best"], True),
        (["search.tie.parameters=2"], True),
        (["search.max_failed=1"], False),
        (["publish={name: cancer}"], False),
        (["resources.cpus_per_worker=2"], False),
        (["train.token_budget=64"], False),
    ],
)
def test_a_study_may_ask_for_more_and_for_other_means(
    tmp_path: Path, settings: list[str], is_more: bool
) -> None:
    before, after = (
        tiny.study(tmp_path, RATE, "search.num_trials=2", *more) for more in ([], settings)
    )
    resume.check_settings(before, after, "here")
    assert resume.wants_more(before, after) is is_more


def test_a_budget_that_is_raised_or_lifted_asks_for_more(tmp_path: Path) -> None:
    before = tiny.study(tmp_path, RATE, "search.num_epochs=4")
    for change in ("search.num_epochs=5", "search.num_epochs=null"):
        assert resume.wants_more(before, tiny.study(tmp_path, RATE, change))
    assert not resume.wants_more(before, tiny.study(tmp_path, RATE, "search.num_epochs=3"))


def test_a_base_model_may_be_appended_and_not_taken_out_or_put_first(tmp_path: Path) -> None:
    bert, llama = tiny.base(tmp_path, "bert"), tiny.base(tmp_path, "llama")
    before = tiny.study(tmp_path)
    after = tiny.study(
        tmp_path, f"base_models=[{{source: {bert}}}, {{source: {llama}, overrides: {{lora.r: 4}}}}]"
    )
    resume.check_settings(before, after, "here")
    assert resume.wants_more(before, after)
    with pytest.raises(
        ConfigError, match=r"base_models\.1\.source was .*tiny-llama' and is 'not set'"
    ):
        resume.check_settings(after, before, "here")
    with pytest.raises(
        ConfigError, match=r"base_models\.0\.source was .*tiny-bert' and is .*tiny-llama'"
    ):
        resume.check_settings(
            before,
            tiny.study(tmp_path, f"base_models=[{{source: {llama}}}, {{source: {bert}}}]"),
            "here",
        )


def test_what_would_mix_two_studies_is_refused_by_its_name(tmp_path: Path) -> None:
    before = tiny.study(tmp_path, RATE)
    after = tiny.study(
        tmp_path, "search.space={lora.r: {choice: [2, 4]}}", "seed=1", "task.max_length=32"
    )
    with pytest.raises(ConfigError) as error:
        resume.check_settings(before, after, "runs/tiny/1")
    message = str(error.value)
    assert message.startswith(
        "runs/tiny/1: was started with other settings: seed was 0 and is 1; task.max_length was "
        "64 and is 32;"
    )
    assert "search.space.lora.r.choice was 'not set' and is [2, 4]" in message
    assert "may change search.num_trials, search.num_epochs," in message


def test_an_appended_base_model_renames_none() -> None:
    assert slugs(["a/b", "c/b"])[:1] == slugs(["a/b"]) == ["b"]
    assert slugs(["a/b", "c/b", "b-2", "d/b"]) == ["b", "b-2", "b-2-2", "b-3"]


def test_only_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    run = Run.start(tiny.study(tmp_path))
    with run.lock(), pytest.raises(ConfigError, match="another process runs this study"):
        with Run(run.folder).lock():
            pass
    with run.lock():
        pass
