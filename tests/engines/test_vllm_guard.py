"""The guard of vLLM's processes, without vLLM."""

import subprocess
import sys
import time
from pathlib import Path

from medray.engines.vllm.settings import child_processes, guard

PARENT_AND_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""
SHORT_THREADS = """
import threading
print("ready", flush=True)
while True:
    threads = [threading.Thread(target=int) for _ in range(20)]
    [thread.start() for thread in threads]
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(script: str) -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    return process, process.stdout.readline().decode().strip()


def test_a_guard_ends_the_processes_and_their_children_with_its_owner() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    parent, child = start(PARENT_AND_CHILD)
    owner = guard([dead.pid, parent.pid])  # a process that has ended is no error
    assert is_running(parent.pid)
    assert is_running(int(child))
    assert owner.stdin
    owner.stdin.close()  # as the system does when the process that holds the other end is killed
    deadline = time.monotonic() + 20
    while is_running(int(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert parent.wait(20) == -9
    assert not is_running(int(child))
    owner.wait(20)


def test_threads_that_end_while_children_are_listed_are_no_error() -> None:
    process, _ = start(SHORT_THREADS)
    try:
        assert all(child_processes([process.pid]) == [] for _ in range(2000))
    finally:
        process.kill()
        process.wait()
