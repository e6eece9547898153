"""What crosses the simulated network: one-way messages, and the questions behind a fetch and a catch-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit, GetLog, Log, StateRecord, UnitState
from swarm.round.facts import BlobFailed, BlobStored, CatchUpEnded, Received, Unreached
from tests.sim.faults import Lossy, Partition
from tests.sim.life import Life, Peer, Process
from tests.sim.stub_trainer import state_digest
from tests.sim.wires import seal, unseal

if TYPE_CHECKING:
    from tests.sim.world import World

SEND_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 10.0
LATENCY_S = 0.03  # one way; jitter doubles it at most
BYTES_PER_S = 12.5e6
STATE_BYTES = 4 << 20


class Traffic:
    """All links of a world."""

    def __init__(self, world: World) -> None:
        self.sent: Counter[str] = Counter()  # one-way messages by kind
        self.partitions: set[Partition] = set()
        self.lossy: Lossy | None = None
        self._world = world

    def send(self, life: Life, to: PeerId, message: object, raw: bytes) -> None:
        """Sends a one-way message on its way."""
        sender, receiver = life.peer, self._world.by_id(to)
        assert receiver is not None and receiver is not sender
        kind = type(message).__name__
        self.sent[kind] += 1
        if self._world.transcript is not None:
            self._world.say(f"{sender.name} -> {receiver.name}  {line_of(message)}")
        if receiver.life is None:
            life.after(2 * LATENCY_S, lambda: life.take(Unreached(to)))
            return
        lossy, chance = self.lossy, self._world.chance("loss", sender.number, receiver.number)
        copies = 1
        if lossy is not None:
            copies = 0 if chance.random() < lossy.loss else 2 if chance.random() < lossy.duplicate else 1
            self._world.fate.fired.add(lossy)
        if self.is_cut(sender, receiver) or not copies:
            life.after(SEND_TIMEOUT_S, lambda: life.take(Unreached(to)))
            return
        target = receiver.life
        for _ in range(copies):
            target.after(self._way_s(sender, receiver, len(raw)), lambda: self._arrive(target, sender.id, raw))

    def _arrive(self, target: Life, sender: PeerId, raw: bytes) -> None:
        _, message = unseal(raw)
        target.take(Received(sender, message, raw))

    def _way_s(self, sender: Peer, receiver: Peer, num_bytes: int) -> float:
        """Seconds until bytes sent now are there; big ones queue at the sender's uplink."""
        jitter = 1 + self._world.chance("latency", sender.number, receiver.number).random()
        if num_bytes < 1 << 16:
            return LATENCY_S * jitter
        sender.uplink_free_s = max(sender.uplink_free_s, self._world.now_s) + num_bytes / BYTES_PER_S
        return sender.uplink_free_s - self._world.now_s + LATENCY_S * jitter

    def is_cut(self, a: Peer, b: Peer) -> bool:
        def parts(one: Partition) -> bool:
            if one.other is not None:
                return (a.number in one.side and b.number in one.other) or (
                    a.number in one.other and b.number in one.side
                )
            return (a.number in one.side) != (b.number in one.side)

        return any(parts(one) for one in self.partitions)

    # ---------------------------------------------------------------- fetching and catching up

    def _ask(self, life: Life, peer: Peer, num_bytes: Callable[[Life], int | None]) -> Process:
        """Whether `peer` answered with so many bytes; `num_bytes` is asked when the question is there."""
        began_s = self._world.now_s
        if peer.life is None:
            yield 2 * LATENCY_S
            return False
        yield self._way_s(life.peer, peer, 0)
        while self._world.now_s - began_s < ASK_TIMEOUT_S:
            if peer.life is None:
                return False
            if not peer.life.is_frozen and not self.is_cut(life.peer, peer):
                answer = num_bytes(peer.life)
                if answer is None:
                    yield self._way_s(peer, life.peer, 0)
                    return False
                yield self._way_s(peer, life.peer, answer)
                return peer.life is not None and not self.is_cut(life.peer, peer)
            yield 1.0
        return False

    def _get_blob(self, life: Life, root: Digest, holders: tuple[PeerId, ...]) -> Process:
        def length(other: Life) -> int | None:
            return self._world.blob_bytes if root in other.trainer.now.blobs else None

        for holder in holders:
            peer = self._world.by_id(holder)
            if root in life.trainer.now.blobs:
                return True
            if peer is not None and peer is not life.peer and (yield from self._ask(life, peer, length)):
                life.store(root)
                return True
        return root in life.trainer.now.blobs

    def fetch(self, life: Life, root: Digest, holders: tuple[PeerId, ...]) -> Process:
        got = yield from self._get_blob(life, root, holders)
        life.take(BlobStored(root) if got else BlobFailed(root, "nobody has it"))

    def catch_up(self, life: Life, peers: tuple[PeerId, ...], whole: bool) -> Process:
        fresh = [heard.status.peer for heard in life.machine.presence.fresh(self._world.now_s)]
        asked = [self._world.by_id(peer) for peer in dict.fromkeys([*peers, *fresh])][:5]
        for peer in [one for one in asked if one is not None and one is not life.peer]:
            if not whole and (yield from self._by_log(life, peer)):
                return
            if (yield from self._by_state(life, peer)):
                return
        life.take(CatchUpEnded("nobody has a state that ranks above ours"))

    def _by_log(self, life: Life, peer: Peer) -> Process:
        answers: list[Log] = []
        own = life.trainer.now.chains[::-1]
        question, _ = unseal(seal(life.peer.id, GetLog(tuple(chain.head for chain in own)))), None

        def log_of(other: Life) -> int | None:
            log = other.trainer.now.log
            parents = [commit.parent for commit in log]
            base = next((head for head in question[1].heads if head in parents), None)
            if base is None:
                return None
            raw = seal(peer.id, Log(base, log[parents.index(base) :]))
            answers.append(unseal(raw)[1])
            return len(raw)

        if not (yield from self._ask(life, peer, log_of)):
            return False
        log = answers[-1]
        chain = next(chain for chain in own if chain.head == log.base)
        for commit in log.commits:
            chain = self._world.follow(chain, commit.commit)
        if chain.key <= own[0].key:
            return False
        for commit in log.commits:
            for entry, holders in zip(commit.commit.entries, commit.holders, strict=True):
                if not (yield from self._get_blob(life, entry.root, (peer.id, *holders.peers))):
                    return False
        life.trainer.apply(log.base, log.commits)
        return True

    def _by_state(self, life: Life, peer: Peer) -> Process:
        answers: list[StateRecord] = []

        def state_of(other: Life) -> int | None:
            chain = other.trainer.chain
            if chain.key <= life.trainer.chain.key:
                return None
            raw = seal(peer.id, StateRecord(chain, (UnitState(state_digest(chain), STATE_BYTES),)))
            answers.append(unseal(raw)[1])
            return STATE_BYTES

        if not (yield from self._ask(life, peer, state_of)):
            return False
        life.trainer.adopt(answers[-1].chain)
        return True


def line_of(message: object) -> str:
    """A message as one line of a transcript."""
    match message:
        case Commit():
            listed = ", ".join(f"{entry.author}#{entry.seq}" for entry in message.commit.entries)
            return f"Commit in view {message.view}: {listed}; {message.reason}"
        case _:
            said = [
                getattr(message, name)
                for name in ("activity", "view", "version", "seq", "reason")
                if hasattr(message, name)
            ]
            return " ".join([type(message).__name__, *map(str, said)])
