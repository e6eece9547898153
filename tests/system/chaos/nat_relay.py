"""A process that forwards between peers who cannot dial each other, and is no member itself."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swarm.invite import Invite
from swarm.manifest import Manifest
from tests.system.chaos.arena import until
from tests.system.chaos.nat_run import BARNRAISE
from tests.system.launcher import ROOT

LISTEN: Final = "/ip4/0.0.0.0/tcp/4001"
RELAY: Final = ("relay", "--manifest", "{manifest}", "--listen", LISTEN)  # options of `barnraise`
_READY_S: Final = 30.0
_END_S: Final = 20.0


class Relay:
    """`barnraise relay` in a namespace."""

    def __init__(self, folder: Path, environment: dict[str, str], inside: Sequence[str]) -> None:
        self._out, self._err = folder / "relay.out", folder / "relay.err"
        self._environment = {**environment, "BARNRAISE_DATA": str(folder / "relay-data")}
        self._inside = inside
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, manifest: Path, host: str) -> str:
        """Starts it; returns an invite with its address at that host. Raises AssertionError when it does not say one."""
        words = [word.format(manifest=manifest) for word in RELAY]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*self._inside, *BARNRAISE, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )
        process, run = self._process, Manifest.from_bytes(manifest.read_bytes()).run_id

        def said() -> str | None:
            text = self._out.read_text(errors="replace")
            if invite := re.search(r"barnraise1-[a-z2-7]+", text):
                return invite.group()
            if address := re.search(rf"/ip4/{re.escape(host)}/tcp/[0-9]+/p2p/[1-9A-Za-z]+", text):
                return Invite(run, (address.group(),)).encode()
            assert process.poll() is None, f"the relay ended with {process.returncode}: {self._last_words()}"
            return None

        return until("address of the relay", said, _READY_S)

    def end(self) -> None:
        """SIGTERM; it must end well. Nothing, where it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"the relay did not end within {_END_S:g} s of SIGTERM") from None
            assert self._process.returncode == 0, f"the relay ended with {self._process.returncode}"

    def _last_words(self) -> str:
        """What it said of why, in a line."""
        words = re.sub(r"[^\x20-\x7e]+", " ", self._err.read_text(errors="replace")).split()
        return " ".join(words)[-200:]
