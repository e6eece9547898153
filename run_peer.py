"""Starts or joins a run: `python run_peer.py --help`."""

import os
import shlex
import signal
import sys
from pathlib import Path

for _number in (signal.SIGINT, signal.SIGTERM):  # until the peer's own handlers are in place there is nothing to undo
    signal.signal(_number, lambda *_: os._exit(0))

_FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(_FOLDER))

if __name__ == "__main__":
    try:
        if sys.version_info < (3, 11):  # noqa: UP036  whoever starts it with an older one is told here
            raise ModuleNotFoundError(name="3.11")
        from peer.cli import main
    except ModuleNotFoundError as error:
        python = os.path.relpath(_FOLDER / ".venv" / "bin" / "python")
        first = "" if os.path.exists(python) else "first `make setup`, then "
        words = shlex.join([python, os.path.relpath(__file__), *sys.argv[1:]])
        sys.stderr.write(f"barnraise: this Python ({sys.executable}) has no {error.name}: {first}{words}\n")
        raise SystemExit(2) from None
    main()
