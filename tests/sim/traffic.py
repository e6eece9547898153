"""What crosses the simulated network: one-way messages, and the questions behind a fetch and a catch-up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peer.handoff import AdoptState, ApplyCommits
from swarm.chain import CommitList, head_after
from swarm.digest import Digest
from swarm.errors import StateError
from swarm.identity import PeerId
from swarm.messages import (
    MAX_DIALLED,
    MAX_LOG_COMMITS,
    Commit,
    Contribution,
    GetLog,
    GetState,
    GetStatus,
    Holders,
    LeaderBrief,
    Log,
    NewView,
    PeerStatus,
)
from swarm.round import catch_up
from swarm.round.catch_up import CatchUpRequest, Outcome
from swarm.round.facts import BlobFailed, BlobStored, CatchUp, CatchUpEnded, Received, Unreached, WayFound
from swarm.schema import line
from tests.sim.faults import Lossy, Partition, SlowLink
from tests.sim.forgery import Forgery
from tests.sim.life import Life, Peer, Process
from tests.sim.wires import VERIFIER, issue, open_sealed, seal, unseal
from tests.sim.workshop import entry_of

if TYPE_CHECKING:
    from tests.sim.world import World

SEND_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 10.0
FETCHED_AT_ONCE = 8  # blobs of a commit log
LOOK_S = 0.1  # between two looks whether all have answered
LATENCY_S = 0.03  # one way; jitter doubles it at most
BYTES_PER_S = 12.5e6
QUESTION_BYTES = 1 << 9
SMALL_BYTES = 1 << 16  # less than this does not queue


class Traffic:
    """All links of a world."""

    def __init__(self, world: World) -> None:
        self.sent: Counter[str] = Counter()  # one-way messages by kind
        self.num_bytes = 0  # of all one-way messages
        self.num_forwarded = 0  # of them, by one hop
        self.partitions: set[Partition] = set()
        self.slow_links: set[SlowLink] = set()
        self.lossy: Lossy | None = None
        self._world = world
        self._dialled: set[tuple[int, int, int, int]] = set()  # (peer, life) of both ends, the lower number first
        self._chance: dict[tuple[int, int], random.Random] = {}

    # ---------------------------------------------------------------- one-way messages

    def send(self, life: Life, to: PeerId, message: object, raw: bytes) -> None:
        """Sends a one-way message on its way."""
        world, sender, receiver = self._world, life.peer, self._world.by_id(to)
        if receiver is None:
            return  # made up by a liar
        if receiver.id != to:
            return  # to an invented id: its owner says nothing to that
        assert receiver is not sender
        if world.fate.liars or world.fate.forgeries:
            told = world.fate.lied(sender, message)
            raw = raw if told is message else seal(sender.id, told)
        self.sent[type(message).__name__] += 1
        self.num_bytes += len(raw)
        if world.transcript is not None:
            world.say(f"{sender.name} -> {receiver.name}  {line_of(message)}")
        target = receiver.life
        path = None if target is None else self._path(life, target, len(raw))
        if target is None or path is None:
            self._world.laws.check_unreached(life, receiver)
            life.after(2 * LATENCY_S, partial(life.take, Unreached(to)))
            return
        copies, late_s = 1, 0.0
        if self.lossy is not None:
            chance = self._chance_of(sender, receiver)
            copies = 0 if chance.random() < self.lossy.loss else 2 if chance.random() < self.lossy.duplicate else 1
            late_s = self.lossy.late_s
        hops = list(pairwise(path))
        if any(self.is_cut(*hop) for hop in hops):
            copies = 0
        if not copies or any(self.is_cut(there, here) for here, there in hops):
            life.after(SEND_TIMEOUT_S, partial(life.take, Unreached(to)))  # nothing came back
        for _ in range(copies):
            way_s = sum(self._way_s(*hop, len(raw)) for hop in hops)
            if late_s:
                way_s += self._chance_of(sender, receiver).random() * late_s
            target.after(way_s, partial(self._arrive, target, sender.id, raw))

    def _path(self, life: Life, target: Life, num_bytes: int) -> tuple[Peer, ...] | None:
        """From one to the other: directly, or by one hop over a third that is connected to both now; None: no way."""
        if self._is_connected(life, target):
            return life.peer, target.peer
        for one in map(self._world.by_id, life.machine.presence.forwarders(target.peer.id)):
            third = None if one is None else one.life
            if (
                third is None
                or third.is_frozen
                or not (self._is_connected(life, third) and self.has_link(third, target))
            ):
                continue
            if third.forwards.refusal(life.peer.id, num_bytes, self._world.now_s):
                continue
            self.num_forwarded += 1
            return life.peer, third.peer, target.peer
        return None

    def dial(self, life: Life) -> tuple[PeerId, ...]:
        """Peers that answer when this one dials them: who is up, can be dialled, and is not cut off."""
        found = []
        for other in self._world.peers:
            there = other.life
            if other is life.peer or there is None or there.is_frozen or not other.is_dialable:
                continue
            if not self.is_parted(life.peer, other) and self._is_connected(life, there):
                found.append(other.id)
        first = life.peer.number % max(1, len(found))  # in a large swarm not everybody the same ones
        return tuple((found[first:] + found[:first])[:MAX_DIALLED])

    def _arrive(self, target: Life, sender: PeerId, raw: bytes) -> None:
        _, message = unseal(raw)
        if isinstance(message, PeerStatus) and message.peer == sender:
            target.heard_s[sender] = self._world.now_s
        if isinstance(message, LeaderBrief | NewView):
            target.peer.words_s[sender] = self._world.now_s
        target.take(Received(sender, message, raw))

    def _is_connected(self, life: Life, target: Life) -> bool:
        """Whether one of the two has opened a connection to the other, or can open one now."""
        if self.has_link(life, target):
            return True
        if not target.peer.is_dialable:
            return False
        self._dialled.add(_link_of(life, target))
        return True

    def has_link(self, life: Life, target: Life) -> bool:
        return _link_of(life, target) in self._dialled

    def _chance_of(self, sender: Peer, receiver: Peer) -> random.Random:
        pair = (sender.number, receiver.number)
        if pair not in self._chance:
            self._chance[pair] = random.Random((self._world.seed << 20) + (pair[0] << 10) + pair[1])
        return self._chance[pair]

    def _way_s(self, sender: Peer, receiver: Peer, num_bytes: int) -> float:
        """Seconds until bytes sent now are there; big ones queue at the sender's uplink."""
        latency_s = LATENCY_S * (1 + self._chance_of(sender, receiver).random())
        bytes_per_s = BYTES_PER_S
        for one in self.slow_links:
            if one.peer in (sender.number, receiver.number):
                latency_s += one.latency_s
                bytes_per_s = min(bytes_per_s, one.bytes_per_s) if one.peer == sender.number else bytes_per_s
        if num_bytes < SMALL_BYTES:
            return latency_s
        sender.uplink_free_s = max(sender.uplink_free_s, self._world.now_s) + num_bytes / bytes_per_s
        return sender.uplink_free_s - self._world.now_s + latency_s

    def is_cut(self, sender: Peer, receiver: Peer) -> bool:
        """Whether what `sender` sends now is lost on its way."""
        return any(cuts(one, sender.number, receiver.number) for one in self.partitions)

    def is_parted(self, a: Peer, b: Peer) -> bool:
        """Whether nothing passes in at least one direction: no question is answered then."""
        return bool(self.partitions) and (self.is_cut(a, b) or self.is_cut(b, a))

    # ---------------------------------------------------------------- questions

    def _ask(
        self,
        life: Life,
        peer: Peer,
        answer_of: Callable[[Life], tuple[int, Any] | None],
        may_hop: bool = False,
        timeout_s: float = ASK_TIMEOUT_S,
    ) -> Process:
        """What `peer` answers, or None. `answer_of` gives the answer's length and the answer, when the question is there.
        `may_hop`: over a third, if there is no other way."""
        began_s = self._world.now_s
        path = None if peer.life is None else self._path(life, peer.life, QUESTION_BYTES)
        if path is None or (len(path) > 2 and not may_hop):
            yield 2 * LATENCY_S
            return None
        yield self._way_s(life.peer, peer, 0)
        while self._world.now_s - began_s < timeout_s:
            if peer.life is None:
                return None
            if not peer.life.is_frozen and not self.is_parted(life.peer, peer):
                answer = answer_of(peer.life)
                yield self._way_s(peer, life.peer, 0 if answer is None else answer[0])
                if answer is None or peer.life is None or self.is_parted(life.peer, peer):
                    return None
                return answer[1]
            yield 1.0
        return None

    def _get_blob(self, life: Life, root: Digest, holders: tuple[PeerId, ...], num_bytes: int) -> Process:
        """Whether a blob came into the store of `life`."""

        def blob_of(other: Life) -> tuple[int, bytes] | None:
            if not other.has(root) or other.peer.number in self._world.fate.withheld:
                return None
            return num_bytes, other.shop.store.read(root)

        for holder in holders:
            peer = self._world.by_id(holder)
            if life.has(root):
                return True
            if peer is None or peer is life.peer:
                continue
            blob = yield from self._ask(life, peer, blob_of)
            if blob is not None:
                try:
                    life.shop.store.keep(root, blob)
                except StateError:
                    return False
                return True
        return life.has(root)

    def fetch(self, life: Life, contribution: Contribution, holders: tuple[PeerId, ...]) -> Process:
        root = contribution.root
        life.pin(root)
        carriers = life.machine.presence.carriers(contribution.author)
        holders = tuple(dict.fromkeys((*holders, *carriers)))
        got = yield from self._get_blob(life, root, holders, self._world.blob_bytes)
        whole = got and life.shop.checks(contribution, life.shop.store.read(root))
        life.pin(root)  # for as long as the machine says that it is here
        life.take(BlobStored(root) if whole else BlobFailed(root, "nobody has it"))

    # ---------------------------------------------------------------- catching up: the product's machine asks, we answer

    def catch_up(self, life: Life, wish: CatchUp) -> Process:
        fresh = [heard.status.peer for heard in life.machine.presence.fresh(life.clock_s())]
        request = CatchUpRequest(
            me=life.peer.id,
            peers=tuple(dict.fromkeys([*wish.peers, *fresh])),
            chains=life.chains,
            roots=life.roots,
            stands=life.machine.turn.stands(),
            views=life.machine.turn.acceptable_views,
            is_among_strangers=life.machine.turn.is_among_strangers,
            introducers=life.peer.introducers if life.peer.lives == 1 else frozenset(),
            units=life.record.units,
            whole=wish.whole,
            digest=life.machine.state_digest,
            refused=life.refused,
        )
        machine = catch_up.catch_up(request, VERIFIER, self._world.config.lease)
        answer: Any = None
        while True:
            try:
                question = machine.send(answer)
            except StopIteration as end:
                self._found(life, end.value)
                return
            if isinstance(question, catch_up.Ask):
                answer = yield from self._ask_all(life, question)
                continue
            life.take(WayFound(request.chains[0].head))
            if not life.machine.is_moving_on:
                life.take(CatchUpEnded("it has gone on meanwhile", is_refused=True))
                return
            answer = yield from self._get_all(life, question)

    def _found(self, life: Life, outcome: Outcome) -> None:
        match outcome:
            case catch_up.Move(base, commits, roots, _):
                life.give(ApplyCommits(base, commits, roots, caught_up=True))
            case catch_up.Adopt(record, root, keep_progress):
                life.adopting = record
                life.give(AdoptState(record, root, keep_progress))
            case catch_up.Failed(reason, is_refused):
                self._world.say(f"{life.peer.name} does not catch up: {reason}")
                life.take(CatchUpEnded(line(reason), is_refused=is_refused))

    def _ask_all(self, life: Life, question: catch_up.Ask) -> Process:
        """Each peer's answer, all asked at once."""
        answers: dict[PeerId, object] = {}
        forgeries = self._world.fate.forgeries
        message = open_sealed(seal(life.peer.id, question.message))
        timeout_s = question.timeout_s or ASK_TIMEOUT_S

        def answer_of(other: Life, asked: PeerId) -> tuple[int, Any] | None:
            forgery = forgeries.get(other.peer.number)
            answer = _answer(other, message) if forgery is None else _forged(forgery, other, asked, message)
            return None if answer is None else _on_the_wire(asked, answer)

        def ask(asked: PeerId, peer: Peer) -> Process:
            answers[asked] = yield from self._ask(
                life, peer, lambda other: answer_of(other, asked), may_hop=True, timeout_s=timeout_s
            )

        found = ((peer_id, self._world.by_id(peer_id)) for peer_id in question.peers)
        asked = [(peer_id, peer) for peer_id, peer in found if peer is not None and peer is not life.peer]
        if len(asked) == 1:
            yield from ask(*asked[0])
        else:
            for peer_id, peer in asked:
                life.spawn(ask(peer_id, peer))
            while len(answers) < len(asked):
                yield LOOK_S
        return answers

    def _get_all(self, life: Life, question: catch_up.FetchBlobs) -> Process:
        """ "" once every blob is here, else the reason."""
        life.shop.store.pin("catching up", [one.root for one in question.wanted])
        left, missing, lanes = list(enumerate(question.wanted)), [], []

        def get(lane: int) -> Process:
            while left and not missing:
                turn, one = left.pop()
                first = turn % max(1, len(one.holders))  # every holder is asked for its share
                holders = one.holders[first:] + one.holders[:first]
                if not (yield from self._get_blob(life, one.root, holders, self._world.blob_bytes)):
                    missing.append(one.root)
            lanes.append(lane)

        for lane in range(FETCHED_AT_ONCE):
            life.spawn(get(lane))
        while len(lanes) < FETCHED_AT_ONCE:
            yield LOOK_S
        return f"nobody gave blob {missing[0]}" if missing else ""

    # ---------------------------------------------------------------- what only a usurper says

    def lone_commit(self, life: Life, view: int) -> Commit | None:
        """A commit of nothing but the sender's own pending contribution."""
        pending = life.machine.status().pending
        if pending is None:
            return None
        entry = entry_of(open_sealed(pending))
        head = life.machine.chain.head
        chosen = CommitList((entry,), ())
        signed = issue(life.peer.id, view, head_after(head, chosen))
        holders = (Holders((life.peer.id,)),)
        return Commit(view, head, chosen, (pending,), holders, "because I say so", issued=signed)


def _link_of(life: Life, target: Life) -> tuple[int, int, int, int]:
    """A connection between two processes, the lower number first."""
    ends = sorted(((life.peer.number, life.number), (target.peer.number, target.number)))
    return (*ends[0], *ends[1])


def _answer(other: Life, question: GetLog | GetState | GetStatus) -> object:
    """What the product's server answers."""
    match question:
        case GetState():
            return other.serve_state()
        case GetStatus():
            return other.machine.status()
        case _:
            return _log(other, question)


def _forged(forgery: Forgery, other: Life, asked: PeerId, question: object) -> object:
    """What a forger answers for itself, or for an id that it invented."""
    match question:
        case GetStatus():
            return forgery.status(other.machine.status(), asked)
        case GetLog(heads) if forgery.commits and forgery.base.head not in heads:
            honest = [
                commit.parent for commit in other.log
            ]  # what came before is as it was; the forged commits lie behind it
            first = next((honest.index(head) for head in heads if head in honest), None)
            if first is None or forgery.base.head not in honest[first:]:
                return None
            before = other.log[first : honest.index(forgery.base.head)]
            return Log(honest[first], (*before, *forgery.commits)[:MAX_LOG_COMMITS])
        case _:
            return forgery.answer(question)


def _on_the_wire(author: PeerId, answer: object) -> tuple[int, Any]:
    """An answer's length, and the answer as it comes out of its bytes."""
    raw = seal(author, answer)
    return len(raw), open_sealed(raw)


def _log(other: Life, question: GetLog) -> Log | None:
    parents = [commit.parent for commit in other.log]
    for head in question.heads:
        if head == other.record.chain.head:
            return Log(head, ())
        if head in parents:
            return Log(head, other.log[parents.index(head) :][:MAX_LOG_COMMITS])
    return None


def cuts(one: Partition, sender: int, receiver: int) -> bool:
    """Whether a partition stops what one peer sends to another."""
    inside = sender in one.side, receiver in one.side
    if one.other is None:
        return inside == (True, False) or (inside == (False, True) and not one.one_way)
    across = (sender in one.side and receiver in one.other), (sender in one.other and receiver in one.side)
    return across[0] or (across[1] and not one.one_way)


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
