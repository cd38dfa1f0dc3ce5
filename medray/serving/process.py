"""What each of our Serve replicas does first, whatever it serves."""

import logging

import ray
from ray.serve._private import replica as serve_replica

from medray.serving.auth import is_loopback


def prepare() -> None:
    _log_with_serve()
    if is_loopback(ray.util.get_node_ip_address()):
        _listen_on_loopback()


def _log_with_serve() -> None:
    """medray's own lines go where Serve's go: to the replica's log file and the driver."""
    ours = logging.getLogger("medray")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)


def _listen_on_loopback() -> None:
    """Ray 2.60 opens a port of every replica on all interfaces after the constructor, for calls by gRPC, which nobody here makes."""
    bind = serve_replica.add_port_to_grpc_server
    serve_replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
