"""Processes as torchrun starts them, that run `python -m pemncodec.distributed ARGUMENTS`.

    python tests/encoding_ranks.py

Takes runs from standard input, as JSON:

    [{"ranks": 4, "arguments": ["encode", …], "killed": [2, "publish"]}]

Rank 2 is killed as soon as it calls that. Prints what each rank ended with (−9: killed) and said.
All are forks of this process, so that what is imported is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import TCPStore

from pemncodec import sharding
from pemncodec.distributed import command
from pemncodec.format import partial, places

_GRACE = 30.0  # seconds: others should end by themselves, however busy the machine is
_PLACES = {
    "encode_contents": sharding,
    "encode_part": command,
    "publish": command,
    "put_shards": partial,
    "sync_folder": places,  # when the first shard has its name
}


def run_ranks(
    ranks: int,
    arguments: Sequence[str],
    killed: tuple[int, str | float] | None = None,
) -> list[tuple[int, str]]:
    """What each rank ended with, and what it said.

    Args:
        ranks: how many there are.
        arguments: of the command.
        killed: a rank, and the function at which it is killed, or the seconds after which it is.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(ranks)]
        children = []
        for rank, output in enumerate(outputs):
            child = os.fork()
            if not child:
                descriptor = os.open(output, os.O_CREAT | os.O_WRONLY)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                if killed is not None and killed[0] == rank and isinstance(killed[1], str):
                    _kill_at(killed[1])
                status = _run(rank, ranks, port, arguments)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            children.append(child)
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        if killed is not None and not isinstance(killed[1], str):
            time.sleep(killed[1])
            os.kill(children[killed[0]], signal.SIGKILL)
        ends = _ends(children)
        del store
        return [(end, output.read_text()) for end, output in zip(ends, outputs, strict=True)]


def _ends(children: Sequence[int]) -> list[int]:
    """Exit statuses; when one fails, the others soon get a signal, as from torchrun."""
    ends: dict[int, int] = {}
    deadline = time.monotonic() + 1000
    while len(ends) < len(children):
        for child in set(children).difference(ends):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                ends[child] = os.waitstatus_to_exitcode(status)
                if ends[child]:
                    deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            for child in set(children).difference(ends):
                os.kill(child, signal.SIGTERM)
            deadline += _GRACE
        time.sleep(0.01)
    return [ends[child] for child in children]


def _kill_at(name: str) -> None:
    """Ends this process where it calls a function."""

    def end(*_: Any, **__: Any) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    setattr(_PLACES[name], name, end)


def _run(rank: int, ranks: int, port: int, arguments: Sequence[str]) -> int:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent's, as torchrun's
    }
    sys.argv = ["pemncodec.distributed", *arguments]
    try:
        command.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 3
    else:
        status = 0
    return 4 if dist.is_initialized() else status


if __name__ == "__main__":
    print(json.dumps([run_ranks(**run) for run in json.load(sys.stdin)]))
