"""Starts or joins a run: `python run_peer.py --help`."""

import os
import signal
import sys
from pathlib import Path

for _number in (signal.SIGINT, signal.SIGTERM):  # until the peer's own handlers are in place there is nothing to undo
    signal.signal(_number, lambda *_: os._exit(0))

sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    from peer.cli import main

    main()
