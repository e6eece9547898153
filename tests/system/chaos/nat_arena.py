"""One swarm in the NAT lab: a peer on each host that a cell names, with ids in the order that it wants."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from peer.fault_point import FAULT_ENV
from swarm.identity import Keypair, store_keypair
from tests.system.chaos.arena import until
from tests.system.chaos.nat_lab import HOMES, Lab
from tests.system.chaos.nat_relay import LISTEN, Relay
from tests.system.chaos.nat_run import NatRun
from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import Json, PeerProcess, SwarmOfProcesses

RELAY_HOST = "M"
TOGETHER_S = 120.0
PACE_S = 0.5  # of an inner step: what is measured is the network, on two cores that others may use too
_Found = TypeVar("_Found")


class NatArena:
    """A context manager; on a way out without an error nothing may be left behind."""

    def __init__(self, folder: Path, launcher: Launcher, run: NatRun, lab: Lab, order: str) -> None:
        """`order`: the hosts of all peers that may come, by rising id."""
        folder.mkdir(parents=True)
        self.lab = lab
        self._folder = folder
        self._run = run
        self._invite = ""
        self.swarm = SwarmOfProcesses(folder, launcher)
        self._relay = Relay(folder, {**os.environ, **self.swarm.environment}, self.lab.command(RELAY_HOST))
        self._names: dict[str, str] = {}  # by id
        keys = sorted((Keypair.generate() for _ in order), key=lambda key: key.peer_id.raw)
        for host, key in zip(order, keys, strict=True):
            self.place(host, key)

    def __enter__(self) -> Self:
        self.swarm.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._all_leave()
        except BaseException as failed:
            kind, error = type(failed), failed
            raise
        finally:
            self.swarm.__exit__(kind, error, trace)
        strangers = self.lab.strangers()
        assert not strangers, f"processes are left in the lab: {strangers}"

    def place(self, name: str, key: Keypair) -> PeerProcess:
        """A peer that was never started, with that identity, on the host that its name begins with."""
        peer = self.swarm.peer(name)
        store_keypair(peer.home / "identity.key", key)
        self._names[key.peer_id.base58] = name
        peer.reach = ("--listen", LISTEN)
        peer.environment = {FAULT_ENV: f"orders={self._folder / name}.order;pace={PACE_S}"}
        peer.namespace = self.lab.pid(name[0])
        return peer

    def name_of(self, peer_id: str) -> str:
        return self._names.get(peer_id, "?")

    # ---------------------------------------------------------------- coming

    def begin(self, members: str, with_relay: bool) -> list[PeerProcess]:
        """Starts the run. With a relay all join by its invite; else by that of a public peer, which starts the run."""
        manifest = self._run.manifest(len(members))
        if with_relay:
            self._invite = self._relay.start(manifest, self.lab.address(RELAY_HOST))
            first = ""
        else:
            first = min(host for host in members if host not in HOMES)
            self._invite = self.swarm.peer(first).start("--config", str(manifest)).invite()
        return [self.swarm.peer(host) if host == first else self.join(host) for host in members]

    def join(self, name: str, *, fresh: bool = False) -> PeerProcess:
        return self.swarm.peer(name).start("--join", self._invite, fresh=fresh)

    def wait_included(self, newcomer: PeerProcess, others: Sequence[PeerProcess]) -> float:
        """When one of the others first told of a commit that lists it, unix seconds. Raises AssertionError when none does in
        time."""

        def found() -> float | None:
            told = [one for peer in others for one in peer.events("RoundCommitted")]
            return next((one["at_unix_s"] for one in told if newcomer.peer_id in one["listed"]), None)

        return self.wait(f"commit that lists {newcomer.name}", [*others, newcomer], found, TOGETHER_S)

    def included_together(self, peers: Sequence[PeerProcess]) -> Json:
        """A commit that lists them all, as all of them told of it. Raises AssertionError when there is none in time."""

        def found() -> Json | None:
            told = [{one["head"]: one for one in peer.events("RoundCommitted")} for peer in peers]
            wanted = {one.peer_id for one in peers}
            common = set(told[0]).intersection(*told[1:])
            return next((one for head, one in told[0].items() if head in common and wanted <= set(one["listed"])), None)

        names = ", ".join(peer.name for peer in peers)
        return self.wait(f"commit that lists {names}", peers, found, TOGETHER_S)

    @staticmethod
    def wait(what: str, peers: Sequence[PeerProcess], find: Callable[[], _Found | None], within_s: float) -> _Found:
        """What `find` gives once all those peers are up and it gives something. Raises AssertionError, also when one ends."""

        def found() -> _Found | None:
            for peer in peers:
                assert peer.is_running, f"{peer.name} ended with {peer.process.poll()} before {what}"
            return find() if all(peer.events("PeerStarted") for peer in peers) else None

        return until(what, found, within_s)

    # ---------------------------------------------------------------- going

    def kill(self, host: str) -> None:
        self.swarm.peer(host).kill()

    def say_goodbye(self, host: str) -> None:
        """Ctrl+C; the peer must end well."""
        peer = self.swarm.peer(host)
        peer.signal(signal.SIGINT)
        code = peer.wait_ended()
        assert code == 0, f"{host} ended with {code} after SIGINT"

    def _all_leave(self) -> None:
        """The peers, then the relay."""
        running = [peer for peer in self.swarm.peers.values() if peer.is_running]
        for peer in running:
            peer.signal(signal.SIGTERM)
        codes = {peer.name: peer.wait_ended() for peer in running}
        with contextlib.ExitStack() as stack:
            stack.callback(self._relay.end)
            assert not any(codes.values()), f"exit codes after SIGTERM: {codes}"
