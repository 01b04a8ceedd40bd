"""The networks whose links benchmarks/chaos cuts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.network import can_have_networks

ROOT = Path(__file__).parents[1]
PROGRAM = """
import socket
from tests.support.network import HOST, Network

network, server = Network(2), socket.create_server((HOST, 0))

def reaches(index):
    with network.inside(index):
        try:
            with socket.create_connection(server.getsockname(), timeout=2) as connection:
                return connection.getsockname()[0] == network.addresses[index]
        except OSError:
            return False

print(reaches(0), reaches(1))
network.cut(0)
print(reaches(0), reaches(1))
network.mend(0)
print(reaches(0), reaches(1))
"""


def test_a_machine_whose_link_is_cut_reaches_nothing_until_it_is_mended() -> None:
    if not can_have_networks():
        pytest.skip("this machine allows no networks of one's own")
    command = ["unshare", "-mn", sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.splitlines() == ["True True", "False True", "True True"], result.stderr
