"""A line between the first process of a run and another one: messages as JSON, one a line."""

import json
import os
import secrets
import socket
import threading
import weakref
from typing import Any

import torch.distributed as dist

from gab.distributed.verdict import Member
from gab.errors import UserError

CONNECT = 60.0  # seconds in which all processes of the run must be connected
_open: "weakref.WeakSet[Wire]" = weakref.WeakSet()


class Wire:
    """One end of a line. Sending may be done by any thread, receiving by one."""

    def __init__(self, end: socket.socket):
        end.settimeout(10.0)  # a machine that has gone away shall not hold up who sends
        self.socket, self.closed = end, False
        self._lock, self._received = threading.Lock(), b""
        _open.add(self)

    def send(self, **message: Any) -> bool:
        """Whether the message could be sent."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come, waiting for something; sets `closed` at the end of the line."""
        try:
            received = self.socket.recv(1 << 16)
        except OSError:
            received = b""
        self.closed = not received
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.closed = True
        self.socket.close()


def _close_in_child() -> None:
    """A loader's worker that outlives its process would hide from the others that it has gone."""
    for wire in list(_open):
        wire.socket.close()


os.register_at_fork(after_in_child=_close_in_child)


def connect(rank: int, count: int, store: dist.Store, host: str) -> tuple[list[Member], dict[int, Wire]]:
    """Connect the first process with all others.

    Args:
        store: shared by all processes of the run.
        host: of the first process, as the others reach it.

    Returns:
        All processes of the run, and the lines of this one by the rank at the other end.

    Raises:
        UserError: a line cannot be made.
    """
    server = _listen(local=host in ("127.0.0.1", "localhost")) if rank == 0 else None
    token = secrets.token_hex()
    port = server.getsockname()[1] if server else 0
    store.set(f"process {rank}", json.dumps([socket.gethostname(), os.getpid(), port, token]))
    everyone = [json.loads(store.get(f"process {number}")) for number in range(count)]
    members = [Member(number, count, name, pid) for number, (name, pid, _, _) in enumerate(everyone)]
    if server:
        with server:
            return members, _accept(server, members, token)
    return members, {0: _call((host, everyone[0][2]), rank, everyone[0][3], members)}


def _listen(local: bool) -> socket.socket:
    if local:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(server: socket.socket, members: list[Member], token: str) -> dict[int, Wire]:
    """The others, as they call; who does not know the token is none of them."""
    wires: dict[int, Wire] = {}
    server.settimeout(CONNECT)
    while len(wires) < len(members) - 1:
        try:
            wire = Wire(server.accept()[0])
        except TimeoutError:
            missing = ", ".join(str(member) for member in members[1:] if member.rank not in wires)
            raise UserError(f"no connection from {missing} to {members[0]}: open the ports between the nodes") from None
        try:
            hello = wire.receive()
        except ValueError:  # what looks for open ports speaks other languages
            hello = []
        if hello and hello[0].get("token") == token:
            wires[hello[0]["rank"]] = wire
        else:
            wire.close()
    return wires


def _call(address: tuple[str, int], rank: int, token: str, members: list[Member]) -> Wire:
    try:
        wire = Wire(socket.create_connection(address, timeout=CONNECT))
    except OSError as error:
        raise UserError(
            f"{members[rank]} cannot reach {members[0]} as {address[0]}:{address[1]} ({error}): "
            "open the ports between the nodes"
        ) from error
    wire.send(rank=rank, token=token)
    return wire
