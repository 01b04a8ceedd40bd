"""Machines with addresses of their own on this one: network name spaces on a bridge, whose links can be cut.

Root may do so, in a network name space that the program has for itself (`unshare -mn`): nothing of the machine's own
network is touched, and all of it ends with the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

HOST = "10.88.0.1"
_BRIDGE = "bridge0"
_CLONE_NEWNET = 0x40000000


class Network:
    """A bridge of this machine, HOST, and machines behind it, each at the end of a link.

    Attributes:
        addresses: of the machines.
    """

    def __init__(self, num_machines: int) -> None:
        self.addresses = [f"10.88.0.{10 + index}" for index in range(num_machines)]
        os.makedirs("/var/run/netns", exist_ok=True)
        _do("mount -t tmpfs netns /var/run/netns")
        _do("ip link set lo up")
        _do(f"ip link add {_BRIDGE} type bridge")
        _do(f"ip addr add {HOST}/24 dev {_BRIDGE}")
        _do(f"ip link set {_BRIDGE} up")
        for index, address in enumerate(self.addresses):
            space = _space(index)
            _do(f"ip netns add {space}")
            _do(f"ip link add {_link(index)} type veth peer name eth0 netns {space}")
            _do(f"ip link set {_link(index)} master {_BRIDGE} up")
            _do(f"ip -n {space} addr add {address}/24 dev eth0")
            for device in ("eth0", "lo"):
                _do(f"ip -n {space} link set {device} up")
            _do(f"ip -n {space} route add default via {HOST}")
        # Ray asks for the way to an address outside to find its own.
        _do(f"ip route add default dev {_BRIDGE}")

    @contextlib.contextmanager
    def inside(self, index: int) -> Iterator[None]:
        """What this thread starts for the length of a `with` runs on a machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as own, open(f"/var/run/netns/{_space(index)}", "rb") as its:
            _enter(libc, its.fileno())
            try:
                yield
            finally:
                _enter(libc, own.fileno())

    def cut(self, index: int) -> None:
        """No packet goes to a machine or comes from it."""
        _do(f"ip link set {_link(index)} down")

    def mend(self, index: int) -> None:
        """The link is there again."""
        _do(f"ip link set {_link(index)} up")


def can_have_networks() -> bool:
    """Whether this machine lets this user have networks of their own."""
    trial = "ip link add name trial0 type bridge && ip netns add fmwsss-trial && ip netns del fmwsss-trial"
    place = "mkdir -p /var/run/netns && mount -t tmpfs netns /var/run/netns"
    command = ["unshare", "-mn", "sh", "-c", f"{place} && {trial}"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _space(index: int) -> str:
    return f"machine{index}"


def _link(index: int) -> str:
    return f"link{index}"


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True)


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
