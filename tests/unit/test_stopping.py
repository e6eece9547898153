"""A first signal while a peer starts: exit code 0, the network closed, no word of Python, wherever the main thread is."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from swarm.streams import ending_signals

SCRIPT = """
import sys, threading, time, weakref
from peer.stopping import Stopping

class Network:
    def __init__(self): self.ended = threading.Event()
    def stop(self, timeout_s): print("closed", flush=True); self.ended.set(); time.sleep(0.2)
    def remove_sockets(self): print("sockets removed", flush=True)

class Thing: pass

def in_callbacks():
    while True:
        thing = Thing()
        kept = weakref.ref(thing, lambda _: sum(range(2000)))
        del thing

class Busy:
    def __del__(self): sum(range(2000))

def in_destructors():
    while True:
        Busy()

def under_the_lock_of_new_threads():
    while True:
        threading.Thread(target=int).start()

def in_a_wait(): network.ended.wait(); raise OSError("the network is closed")

def before_training(): network.ended.wait(); stopping.train(None); print("trains", flush=True)

network, stopping = Network(), Stopping()
stopping.install()
stopping.daemon_of(network)
print("ready", flush=True)
with stopping.starting():
    globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize(
    "place",
    ["in_callbacks", "in_destructors", "under_the_lock_of_new_threads", "in_a_wait", "before_training"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_starting(place: str, number: signal.Signals) -> None:
    """An exception out of a signal handler would be dropped in the first two places, and a lock taken twice in the third."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, err) == (0, "")
    assert out.split("\n") == ["closed", "sockets removed", ""]


def test_what_is_to_outlive_its_terminal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nohup` asks for."""
    assert signal.SIGHUP in ending_signals()
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert ending_signals() == (signal.SIGINT, signal.SIGTERM)
