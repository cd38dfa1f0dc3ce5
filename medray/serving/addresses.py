"""Which addresses only this machine reaches, and what any other one needs."""

import ipaddress

from medray.errors import ServingError


def check_address(host: str, *, guarded: bool) -> None:
    if guarded or is_loopback(host):
        return
    raise ServingError(
        f"{host}: an address that others reach needs tokens_file (a SHA-256 a line), or open_to_all: true to let everybody ask; "
        "127.0.0.1 needs neither"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_named(host: str, names: tuple[str, ...]) -> bool:
    """Whether a Host header names this service: by an address, which no foreign page can have, as localhost, or as one of `names`."""
    name, _, port = host.rpartition(":")
    name = (name if port.isdecimal() else host).strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in {one.lower() for one in names}
    return True
