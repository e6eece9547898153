"""Runs `run_peer.py` many times and loads torch and hivemind once: each run is a fork, else a process like any other.

A script. It reads one order a run, as a line of JSON: {"arguments", "environment", "folder", "out", "err", "code",
"file_limit", "namespace"}; answers with the process id; and writes the exit code into the file `code` when the run has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401
import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401

import peer.start  # noqa: F401
from peer.cli import main
from tests.system.liar import lie_if_told


def enter_namespace(pid: int | None) -> None:
    """Becomes a part of that process's user and network namespace; None: stays."""
    for kind in ("user", "net") if pid is not None else ():
        descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"setns to the {kind} namespace of process {pid}")
        os.close(descriptor)


def run(order: dict[str, Any]) -> None:
    """In the process that becomes the peer."""
    os.setsid()
    enter_namespace(order["namespace"])
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    tempfile.tempdir = None
    for descriptor, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    if order["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    lie_if_told()
    sys.argv = ["run_peer.py", *order["arguments"]]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attend(order: dict[str, Any]) -> None:
    """In a process between: tells the run's id, waits for its end, writes its exit code down."""
    os.setsid()
    child = os.fork()
    if child == 0:
        run(order)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    partial = Path(order["code"]).with_suffix(".part")
    partial.write_text(str(os.waitstatus_to_exitcode(status)))
    partial.replace(order["code"])
    os._exit(0)


for line in sys.stdin:
    if os.fork() == 0:
        attend(json.loads(line))
    with_children = True
    while with_children:  # those that ended meanwhile
        try:
            with_children = os.waitpid(-1, os.WNOHANG)[0] > 0
        except ChildProcessError:
            with_children = False
