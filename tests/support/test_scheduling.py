"""How tests are run: which share a process, which are left out when time is short, and how long CI
takes at most."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import scheduling, time_budget
from support.costs import ProcessTree

ROOT = Path(__file__).parents[2]
LIMIT_S = 80 * 60  # of a whole run of .ci/run


def items(*names: str) -> list[Any]:
    def item(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            nodeid=name, get_closest_marker=lambda mark: mark == "tutorial" and "page" in name
        )

    return [item(name) for name in names]


def files(tests: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(item.nodeid.partition("::")[0] for item in tests))


def test_each_file_begins_on_one_day_and_stays_whole() -> None:
    tests = items("a.py::1", "a.py::2", "b.py::1", "c.py::1", "c.py::2")
    days = [time_budget.rotate(tests, day) for day in range(3)]
    assert [files(day)[0] for day in days] == ["a.py", "b.py", "c.py"]
    assert [item.nodeid for item in days[1]] == [
        "b.py::1",
        "c.py::1",
        "c.py::2",
        "a.py::1",
        "a.py::2",
    ]


def test_each_day_begins_with_another_page_that_trains_and_leaves_out_the_others() -> None:
    tests = items("a.py::1", "b.py::page 1", "b.py::page 2", "b.py::1")
    names = [[item.nodeid for item in time_budget.of_day(tests, day)] for day in range(3)]
    assert names[0] == ["b.py::page 1", "a.py::1", "b.py::1"]
    assert names[1] == ["b.py::page 2", "b.py::1", "a.py::1"]
    assert names[2] == names[0]
    budget, lines = time_budget.Budget(60), []
    budget.pytest_collection_modifyitems(tests)
    assert len(tests) == 3
    budget.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    assert lines == ["left out for lack of time: b.py (1)"]


def test_tests_after_the_budget_are_left_out_and_named() -> None:
    budget, lines = time_budget.Budget(-1), []
    for item in items("a.py::1", "a.py::2", "b.py::1"):
        with pytest.raises(pytest.skip.Exception, match="the time budget is used up"):
            budget.pytest_runtest_setup(item)
    budget.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    assert lines == ["left out for lack of time: a.py (2), b.py (1)"]
    time_budget.Budget(60).pytest_runtest_setup(
        items("a.py::1")[0]
    )  # there is time: it is not skipped


def test_files_that_need_ray_come_first_in_two_groups_and_the_others_stay_whole() -> None:
    tests = items(
        "tests/test_plugins.py::a",
        "tests/cli/test_cli.py::b",
        "tests/study/test_ray_tune.py::c",
        "tests/study/test_seeds.py::d",
    )
    scheduling.order(tests)
    assert [item.nodeid[-1] for item in tests] == ["b", "c", "d", "a"]
    scheduler = scheduling.RayTogether.__new__(
        scheduling.RayTogether
    )  # __init__ would request tests from xdist's processes
    scopes = [scheduler._split_scope(item.nodeid) for item in tests]
    assert scopes == [
        "services on Ray",
        "studies on Ray",
        "studies on Ray",
        "tests/test_plugins.py",
    ]


def test_seconds_of_cpu_grow_with_work_and_not_with_waiting() -> None:
    tree = ProcessTree()
    before = tree.cpu_s()
    while (cpu_s := tree.cpu_s() - before) < 0.2:
        sum(range(100_000))
    assert cpu_s < 5


def test_the_stages_of_ci_cannot_take_longer_than_its_limit() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    always = [int(seconds) for seconds in re.findall(r"^stage \S+ (\d+) ", script, re.MULTILINE)]
    sometimes = [
        int(seconds) for seconds in re.findall(r"^  stage \S+ (\d+) ", script, re.MULTILINE)
    ]
    goal, of_vllm, grace = (
        int(re.findall(pattern, script)[0])
        for pattern in (r"GOAL=(\d+)", r"OF_VLLM=(\d+)", r"left \+ (\d+)")
    )
    assert len(always) == 7
    assert sum(always) <= LIMIT_S
    # The slow part ends by goal - of_vllm + grace; only where it ended before the goal does vLLM's
    # begin.
    assert max(goal - of_vllm + grace, goal + sum(sometimes) + grace) <= LIMIT_S
