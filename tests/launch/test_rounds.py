"""How processes of one job find each other."""

import socket

import pytest
from torch.distributed import TCPStore

from nca_plugin.launch.rounds import reserved_port


def test_a_reserved_port_is_given_to_nobody_else_and_can_be_served() -> None:
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        with reserved_port() as another:
            assert another != port
        server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        client = TCPStore("127.0.0.1", port, is_master=False)
        client.set("key", "value")
        assert server.get("key") == b"value"
