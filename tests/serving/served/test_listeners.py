"""The listeners of a release that is served on one machine."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serve_session import Served, processes

pytestmark = pytest.mark.ray


def test_every_listener_is_on_loopback(served: Served) -> None:
    """What this process and all that it started listen on, by the kernel's own tables."""
    owners = dict(_sockets())
    assert any("/haproxy -db " in name for name in owners.values()) == (sys.platform == "linux")
    listeners = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in owners:
                address, _, port = parts[1].partition(":")
                listeners.add((owners[parts[9]], address, int(port, 16)))
    assert served.port in {port for _, _, port in listeners}
    assert len(listeners) > 5  # Ray's own as well
    assert {one for one in listeners if not one[1].endswith("0100007F")} == set()


def _sockets() -> Iterator[tuple[str, str]]:
    for number, name in processes().items():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{number}/fd").iterdir():
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    yield target.removeprefix("socket:[").removesuffix("]"), name
