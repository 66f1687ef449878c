import socket
import threading
from collections.abc import Callable

import pytest
import torch.distributed as dist

from gab.distributed import wire
from gab.distributed.verdict import Member
from gab.distributed.wire import Wire, connect
from gab.errors import UserError

HERE = "127.0.0.1"
MEMBERS = [Member(rank, 3, "n1", 100 + rank) for rank in range(3)]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_messages_both_ways() -> None:
    store, ends = dist.HashStore(), {}
    threads = [in_thread(lambda rank=rank: ends.update({rank: connect(rank, 3, store, HERE)})) for rank in range(3)]
    for thread in threads:
        thread.join(120)
    members, wires = ends[0]
    assert [member.rank for member in members] == [0, 1, 2]
    assert (members, [0]) == (ends[2][0], list(ends[2][1]))
    for rank in (1, 2):
        wires[rank].send(to=rank)
        assert ends[rank][1][0].receive() == [{"to": rank}]
        ends[rank][1][0].close()
        assert wires[rank].receive() == []
        assert wires[rank].closed
        wires[rank].close()


def test_parts_of_messages_wait_for_the_rest() -> None:
    near, far = socket.socketpair()
    line = Wire(near)
    far.sendall(b'{"a": 1}\n{"b"')
    assert line.receive() == [{"a": 1}]
    far.sendall(b": 2}\n")
    assert line.receive() == [{"b": 2}]
    line.close()
    far.close()
    assert not line.send(c=3)


def test_strangers_are_not_let_in() -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]

        def call(*messages: dict) -> None:
            for message in messages:
                line = Wire(socket.create_connection((HERE, port)))
                line.send(**message)
                lines.append(line)

        lines: list[Wire] = []
        scanner = socket.create_connection((HERE, port))
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        thread = in_thread(
            lambda: call({"rank": 1, "token": "guessed"}, {"rank": 1, "token": "t"}, {"rank": 2, "token": "t"})
        )
        wires = wire._accept(server, MEMBERS, "t")
        thread.join(120)
        assert sorted(wires) == [1, 2]
        assert lines[0].receive() == []
        assert lines[0].closed
        for line in (scanner, *lines, *wires.values()):
            line.close()


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CONNECT", 0.2)
    with socket.create_server((HERE, 0)) as server, pytest.raises(UserError) as refused:
        wire._accept(server, MEMBERS, "t")
    assert str(refused.value) == (
        "no connection from process 1 of 3 (host n1, pid 101), process 2 of 3 (host n1, pid 102) to process 0 of 3 "
        "(host n1, pid 100): open the ports between the nodes"
    )


def test_nobody_answers() -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"as {HERE}:{port} .*: open the ports between the nodes"):
        wire._call((HERE, port), 1, "t", MEMBERS)
