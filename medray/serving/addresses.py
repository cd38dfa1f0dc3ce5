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
