"""`pytest --costs=N` prints the N slowest phases of tests: their seconds, and the CPU seconds of
all their processes.

A phase with many seconds and little CPU time waits; one with as much CPU time computes.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_NAME = "cpu_s"


class ProcessTree:
    """Samples the CPU seconds of this process and all its descendants, including those that have
    ended, which any process may reap."""

    def __init__(self, interval_s: float = 0.5) -> None:
        self._cpu_s: dict[int, float] = {}
        self._stop = threading.Event()
        self._interval_s = interval_s
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._sample, daemon=True).start()

    def end(self) -> None:
        self._stop.set()

    def cpu_s(self) -> float:
        parents: dict[int, int] = {}
        cpu_s: dict[int, float] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(process.name)] = int(fields[1])
                cpu_s[int(process.name)] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        with self._lock:
            below = {os.getpid()} | (
                self._cpu_s.keys() & cpu_s.keys()
            )  # a process whose parent has ended stays counted
            while more := {child for child, parent in parents.items() if parent in below} - below:
                below |= more
            self._cpu_s |= {number: cpu_s[number] for number in below if number in cpu_s}
            return sum(self._cpu_s.values())

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.cpu_s()


class Costs:
    def __init__(self, num_shown: int) -> None:
        self.num_shown = num_shown
        self.rows: list[tuple[float, float, str, str]] = []
        self._tree = ProcessTree()
        self._before = 0.0

    def pytest_sessionstart(self) -> None:
        self._tree.start()

    def pytest_sessionfinish(self) -> None:
        self._tree.end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._before = self._tree.cpu_s()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        self._before = self._tree.cpu_s()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._before = self._tree.cpu_s()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        report.user_properties = [
            *report.user_properties,
            (_NAME, self._tree.cpu_s() - self._before),
        ]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cpu_s = [float(str(value)) for name, value in report.user_properties if name == _NAME]
        if cpu_s:
            self.rows.append((report.duration, cpu_s[-1], report.when or "", report.nodeid))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        wall, cpu = (sum(row[column] for row in self.rows) for column in (0, 1))
        terminalreporter.section(
            f"costs: {len(self.rows)} phases of {wall:.0f} s in all and {cpu:.0f} s of CPU; the "
            f"slowest {self.num_shown}"
        )
        for seconds, cpu_s, when, name in sorted(self.rows, reverse=True)[: self.num_shown]:
            terminalreporter.write_line(f"{seconds:8.2f} s {cpu_s:8.2f} s of CPU  {when:<8} {name}")
