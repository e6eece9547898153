"""Runs `run_peer.py` many times without loading torch and hivemind each time: they are loaded once, each run is a fork.

A script: reads one line of JSON a run, {"arguments", "out", "err", "file_limit"}, and answers with its exit code.
Each run is a process of its own, in a session of its own, which goes through the same `main` as the command.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback

import bitsandbytes  # noqa: F401
import transformers.models.gpt_neox  # noqa: F401

import peer.start  # noqa: F401
from peer.cli import main


def run(order: dict[str, object]) -> None:
    """In the child."""
    os.setsid()
    for descriptor, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(str(name), os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    limit = order["file_limit"]
    if isinstance(limit, int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["run_peer.py", *order["arguments"]]  # type: ignore[misc]
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


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
