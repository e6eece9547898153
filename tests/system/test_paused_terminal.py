"""A terminal that takes nothing (Ctrl+S) stops neither a peer's rounds nor its end."""

from __future__ import annotations

import os
import pty
import signal
import termios
from pathlib import Path

import pytest

from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import SwarmOfProcesses

pytestmark = pytest.mark.system


def test_a_peer_commits_and_ends_in_front_of_a_paused_terminal(tmp_path: Path, launcher: Launcher) -> None:
    with SwarmOfProcesses(tmp_path, launcher, min_peers=1) as swarm:
        screen, terminal = pty.openpty()
        swarm.closing.callback(os.close, screen)
        swarm.closing.callback(os.close, terminal)
        peer = swarm.peer("p1")
        files = peer.out_path, peer.err_path
        peer.out_path = peer.err_path = Path(os.ttyname(terminal))
        termios.tcflow(terminal, termios.TCOOFF)
        swarm.found("p1")
        peer.out_path, peer.err_path = files  # for its story: reading a terminal would wait for what is typed
        while peer.version < 3:  # more lines than a terminal would hold anyway
            peer.wait_commit()
        peer.signal(signal.SIGTERM)
        assert peer.wait_ended() == 0
        os.set_blocking(screen, False)
        with pytest.raises(BlockingIOError):
            os.read(screen, 1)  # it was paused indeed
        swarm.assert_nothing_left()
