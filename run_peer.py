"""Starts or joins a run: `python run_peer.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peer.cli import main

if __name__ == "__main__":
    main()
