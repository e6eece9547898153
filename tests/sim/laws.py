"""What must hold after every event, whatever happens. Each law has a short name; `LawBroken` carries it.

The laws are computed from what the world saw, not from what the product says of itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.allreduce.shared import SharedState
from swarm.chain import MAX_BARRED, ChainState, CommitList
from swarm.digest import Digest
from swarm.events import StateDiffered
from swarm.identity import PeerId
from swarm.messages import Commit, Contribution, record_digest
from swarm.round.commits import roots_of
from swarm.round.facts import Effect, Fact, Received, Send
from swarm.round.root import Root
from tests.sim.books import LawBroken
from tests.sim.faults import DiskFull, Freeze, Lossy, Partition, Slow, SlowDisk, SlowLink, Usurper, Withhold
from tests.sim.reference import Numbers, round_steps, taken_of
from tests.sim.traffic import cuts
from tests.sim.wires import open_sealed
from tests.sim.workshop import precision_of

if TYPE_CHECKING:
    from tests.sim.life import Life, Peer
    from tests.sim.world import World

WATCH_EVERY_S = 5.0
CHECK_SIZES_EVERY = 64  # facts of one life
MIN_ISOLATION_S = 30.0  # what the protocol page promises, not what the code says
ISOLATION_DEADLINES = 3
MAX_KEPT_STATES = 3
MAX_KEPT_COMMITS = 16
TOLERANCES = {"fp64": 1e-9, "fp32": 1e-4}  # relative, against fp64; AdamW divides small numbers by small ones
MAX_OWN = 8  # contributions of its own that a peer remembers


@dataclass(frozen=True)
class Known:
    """What a head stands for, as its first visitor found it."""

    chain: ChainState
    digest: Digest
    listed: frozenset[tuple[PeerId, int]]
    numbers: Numbers
    at_s: float  # when somebody came there first


class Laws:
    """The laws of one world."""

    def __init__(self, world: World, genesis: SharedState, digest: Digest) -> None:
        chain = genesis.chain
        self.known: dict[Digest, Known] = {chain.head: Known(chain, digest, frozenset(), Numbers.of(genesis), 0.0)}
        self._world = world
        self._tolerance = TOLERANCES[precision_of(world.config)]
        self._round = world.config.round
        self.isolation_s = max(MIN_ISOLATION_S, ISOLATION_DEADLINES * self._round.exchange_deadline_s)
        self._quiet_since_s = 0.0
        self.num_minority = self.num_barred = 0
        self._waits: dict[int, tuple[Life, str, float]] = {}

    # ---------------------------------------------------------------- states and chains

    def check_state(self, life: Life) -> None:
        """One state: equal heads stand for equal chains and equal bits; and every commit keeps the chain's rules."""
        versions = life.replica._versions
        if len(versions) > MAX_KEPT_STATES or len(life.log) > MAX_KEPT_COMMITS:
            raise LawBroken(
                "memory is bounded", f"{life.peer.name} keeps {len(versions)} states, {len(life.log)} commits"
            )
        for version in versions:
            chain = version.state.chain
            if chain.head not in self.known:
                self._learn(life, chain, record_digest(version.record))
            known = self.known[chain.head]
            if chain is not known.chain and chain != known.chain:
                raise LawBroken(
                    "one state", f"{life.peer.name}: equal heads with different chains, version {chain.version}"
                )
            if record_digest(version.record) != known.digest:
                raise LawBroken(
                    "one state", f"{life.peer.name}: equal heads with different bits, version {chain.version}"
                )

    def _learn(self, life: Life, chain: ChainState, digest: Digest) -> None:
        log = life.replica.log
        commit = next((one for one in reversed(log) if self._world.head_after(one) == chain.head), None)
        if commit is None or commit.parent not in self.known:
            raise LawBroken("a chain is made of commits", f"{life.peer.name} is at a head that nobody committed")
        parent = self.known[commit.parent]
        if chain.version != parent.chain.version + 1:
            raise LawBroken("a chain is made of commits", f"version {chain.version} follows {parent.chain.version}")
        if chain.tokens != parent.chain.tokens + commit.commit.tokens:
            raise LawBroken("tokens are those listed", f"version {chain.version} has {chain.tokens} tokens")
        new = {(entry.author, entry.seq) for entry in commit.commit.entries}
        if new & parent.listed or len(new) < len(commit.commit.entries):
            raise LawBroken("listed once", f"version {chain.version} lists a number again")
        due = self._tokens_due(parent.chain, commit.commit)
        for entry, tokens in zip(commit.commit.entries, due, strict=True):
            self._check_entry(chain, entry)
            if entry.tokens != tokens:
                raise LawBroken("tokens are capped", f"{entry.tokens} tokens are listed where {tokens} are due")
        self._check_barred(parent.chain, chain, commit)
        self._check_members(parent.chain, chain, commit.commit)
        self._check_voters(parent.chain, chain, commit.commit)
        self.num_minority += commit.commit.minority
        self.num_barred += len(commit.commit.barred)
        state = life.replica.version_of(chain.head).state  # type: ignore[union-attr]
        self.known[chain.head] = Known(chain, digest, parent.listed | new, Numbers.of(state), self._world.now_s)
        next_numbers = self._step_due(parent, commit.commit)
        if not next_numbers.close_to(self.known[chain.head].numbers, self._tolerance):
            raise LawBroken("a step is as written", f"version {chain.version} is not what its commit says")

    def _step_due(self, parent: Known, commit: CommitList) -> Numbers:
        """The next state by the formulas, from what the authors' books say."""
        entries, config = commit.entries, self._world.config
        total = sum(entry.tokens for entry in entries)
        decoded = [self._world.books.cuts[entry.author][entry.seq].decoded_N for entry in entries]
        taken = [taken_of(one, entry.steps, config) * entry.tokens for one, entry in zip(decoded, entries, strict=True)]
        return parent.numbers.after(config.outer, sum(taken) / total)

    def _check_barred(self, parent: ChainState, chain: ChainState, commit: Commit) -> None:
        """A head is barred by a majority of those who stand at its parent, in their own words; and it stays so."""
        if chain.barred != (*parent.barred, *commit.commit.barred)[-MAX_BARRED:]:
            raise LawBroken("barred heads are left", f"version {chain.version} forgets what was barred")
        for head in commit.commit.barred:
            said = [open_sealed(raw) for raw in commit.evidence]
            witnesses = {one.peer for one in said if head in one.lost and one.head == parent.head} & set(
                voters_of(parent)
            )
            if 2 * len(witnesses) <= len(voters_of(parent)):
                text = f"head {head} is barred by {len(witnesses)} of {len(voters_of(parent))}"
                raise LawBroken("a majority bars", text)

    def _check_members(self, parent: ChainState, chain: ChainState, commit: CommitList) -> None:
        """Who is dialable was dialled, and remains so for two commits more; since when each is a member is remembered."""
        before = dict(zip(parent.roster, zip(parent.entered, parent.dialable, strict=True), strict=True))
        said = dict(zip(chain.roster, commit.dialable or bytes(len(chain.roster)), strict=True))
        for peer, entered, lives in zip(chain.roster, chain.entered, chain.dialable, strict=True):
            known = self._world.by_id(peer)
            if said[peer] == 1 and known is not None and not known.is_dialable:
                raise LawBroken("dialable is who was dialled", f"version {chain.version} says so of {known.name}")
            since, left = before.get(peer, (chain.version, 0))
            if (entered, lives) != (since, {0: max(0, left - 1), 1: 3, 2: 0}[said[peer]]):
                raise LawBroken("dialable is who was dialled", f"version {chain.version}: {entered}, {lives} of {peer}")

    def _check_voters(self, parent: ChainState, chain: ChainState, commit: CommitList) -> None:
        """Work is listed of who is or was a member; few are admitted at once; who has a vote has been listed lately."""
        authors, voted = {entry.author for entry in commit.entries}, voters_of(parent)
        if not parent.roster or (commit.minority and not authors & set(voted)):
            return
        lately, one = set(parent.roster), parent
        for head in parent.recent[:2]:
            one = self.known[head].chain
            lately |= set(one.roster)
        if one.roster and not authors <= lately:
            raise LawBroken("members alone contribute", f"version {chain.version} lists work of strangers")
        if len(set(chain.roster) - authors - set(parent.roster)) > max(4, len(voted)):
            raise LawBroken("few are admitted at once", f"version {chain.version} admits a crowd")
        lives = dict(zip(parent.roster, parent.voting, strict=True))
        for peer, left in zip(chain.roster, chain.voting, strict=True):
            most = 3 if peer in authors else lives.get(peer, 0) - 1
            if left > max(0, most) or (peer in authors and not left):
                raise LawBroken("who works votes", f"version {chain.version}: {left} commits for {peer}")

    def forks(self) -> int:
        """Heads beyond the first of their version."""
        return len(self.known) - len({known.chain.version for known in self.known.values()})

    def _tokens_due(self, parent: ChainState, commit: CommitList) -> list[int]:
        """What each entry is to weigh: its leases at most, and of a new member no more than most others' work."""
        due, settled = [], []
        for entry in commit.entries:
            made = self._world.books.made(entry.author, entry.seq)
            entered = dict(zip(parent.roster, parent.entered, strict=True)).get(entry.author, parent.version)
            since = entered if made is None else max(made.since_version, entered)
            rounds = min(3, max(1, parent.version - since + 1))
            due.append(min(0 if made is None else made.tokens, rounds * self._world.config.lease_tokens))
            if parent.version - entered >= 3:
                settled.append(due[-1])
            else:
                due[-1] = -due[-1]  # of somebody new
        middle = sorted(settled)[(len(settled) - 1) // 2] if settled else None
        return [abs(one) if one > 0 or middle is None else min(-one, middle) for one in due]

    def _check_entry(self, chain: ChainState, entry: object) -> None:
        made = self._world.books.made(entry.author, entry.seq)  # type: ignore[attr-defined]
        said = tuple(getattr(entry, name) for name in ("author", "incarnation", "seq", "steps", "root"))
        if made is None or said != (made.author, made.incarnation, made.seq, made.steps, made.root):
            raise LawBroken("a number means one blob", f"version {chain.version} lists what was never cut: {said}")
        if not chain.has_listed(made.author, made.seq):
            raise LawBroken("listed once", f"version {chain.version} lists a number and does not remember it")

    def check_told(self, life: Life, made: Contribution) -> None:
        """A contribution is on disk before anybody hears of it; and one number of an author means one blob, for ever."""
        written = life.peer.disk.generations
        if not written or all(cut.seq != made.seq for cut in written[0].saved.cuts):
            raise LawBroken("first on disk, then told", f"{life.peer.name} announces its number {made.seq}")
        self._world.books.tell(made)

    def check_move(self, life: Life, before: ChainState, root: Root, *, knew_nobody: bool) -> None:
        """A peer goes on along its chain, or to another branch from its root, of before, on; and tells the state it has.
        Who knew nobody that was there goes anywhere."""
        after = life.machine.chain
        known = self.known.get(after.head)
        written = life.peer.disk.generations
        if not written or written[0].saved.states[-1].chain.head != after.head:
            raise LawBroken("first on disk, then told", f"{life.peer.name} tells of version {after.version}")
        if after.head in before.barred:
            raise LawBroken("barred heads are left", f"{life.peer.name} goes to a head that is barred")
        if known is None or life.machine.state_digest != known.digest:
            raise LawBroken("one state", f"{life.peer.name} tells a digest that is not its state's")
        if after.head == before.head:
            told = self._world.of_kind(StateDiffered)
            if not any(who == life.peer.name and event.version == after.version for _, who, event in told):
                raise LawBroken(
                    "versions go on", f"{life.peer.name} takes the state that it has, version {after.version}"
                )
        elif root.version > 1 and not knew_nobody and not self._is_on_the_way(root.head, after):
            text = (
                f"{life.peer.name} went from version {before.version} to {after.version} beside its root {root.version}"
            )
            raise LawBroken("what is proved is not left", text)
        self._world.say(f"{life.peer.name} reaches version {after.version}")

    def _is_on_the_way(self, head: Digest, chain: ChainState) -> bool:
        """Whether a head is on the way to that one; or barred by it."""
        if head in chain.barred:
            return True
        while chain.head != head and chain.recent:
            chain = self.known[chain.recent[0]].chain
        return chain.head == head

    # ---------------------------------------------------------------- each step

    def check_inner(self, life: Life, slots: Sequence[int]) -> None:
        """An inner step that is about to be taken: on leased slots, at most one round ahead of what waits for a commit."""
        replica, config = life.replica, self._world.config
        chain, steps, most = replica.present.state.chain, replica.work.steps, round_steps(config)
        members = len(chain.roster) or len(life.machine.opened)
        if not slots or max(slots) >= chain.cursor + 2 * members * config.lease_windows:
            raise LawBroken("leased slots", f"{life.peer.name} trains on {slots}, leases begin at {chain.cursor}")
        waiting = sum(cut.steps for cut in replica._ledger.pending.values())
        if waiting and (steps >= most or waiting + steps >= 2 * most):
            text = f"{life.peer.name} trains on after {steps} steps beside {waiting} that wait"
            raise LawBroken("one round ahead", text)

    def check_step(self, life: Life, fact: Fact) -> None:
        machine = life.machine
        passage = machine._passage
        if type(fact) is Received and type(fact.message) is Commit and passage.commit is fact.message:
            self._check_accepted(life, fact.sender, fact.message)
        doing = "syncing" if machine.syncing else "moving" if passage.commit is not None else ""
        number = life.peer.number
        known = self._waits.get(number)
        if not doing:
            if known is not None:
                del self._waits[number]
        elif known is None or known[0] is not life or known[1] != doing:
            self._waits[number] = (life, doing, self._world.now_s)
        life.facts += 1
        if life.facts % CHECK_SIZES_EVERY == 0:
            self._check_sizes(life)

    def _check_accepted(self, life: Life, sender: PeerId, commit: Commit) -> None:
        chain = life.machine.chain
        voters = voters_of(chain) if life.machine._turn.roster else ()
        order = sorted(voters, key=lambda peer: (not chain.dialable[chain.roster.index(peer)], peer.raw))
        if order and order[commit.view % len(order)] != sender:
            raise LawBroken("one leader a view", f"{life.peer.name} follows {sender} in view {commit.view}")

    @staticmethod
    def _held(peer: Peer, root: Digest, head: ChainState) -> bool:
        """Whether it holds the blob, or held it: on a disk since lost, or until it left this branch for a better one."""
        left = peer.life is not None and _rank(peer.life.machine.chain) > _rank(head)
        return root in peer.disk.blobs or root in peer.disk.lost or (left and root in peer.disk.collected)

    def check_issued(self, life: Life, commit: Commit) -> None:
        """A leader's commit, in front of its first message: a majority holds what it lists, or nobody else is there."""
        roster = voters_of(life.machine.chain)
        if not roster or life.issued is commit or life.peer.number in self._world.usurpers:
            return
        life.issued = commit
        now_s = self._world.now_s
        silent = life.machine.presence._given_up & set(commit.commit.roster)
        said = dict(zip(commit.commit.roster, commit.commit.dialable or bytes(len(commit.commit.roster)), strict=True))
        if any(said[peer] != 2 for peer in silent):
            raise LawBroken("who was silent in its turn leads last", f"{life.peer.name} says {said}")
        for root in (entry.root for entry in commit.commit.entries):
            members = [peer for peer in map(self._world.by_id, roster) if peer is not None]
            holders = [peer for peer in members if self._held(peer, root, life.machine.chain)]
            if 2 * len(holders) > len(roster):
                continue
            since_s = self.isolation_s - self._round.leader_timeout_s - 2 * self._round.heartbeat_s
            heard = 1 + sum(now_s - life.heard_s.get(peer, -1e9) < since_s for peer in roster if peer != life.peer.id)
            if 2 * heard > len(roster) or not commit.commit.minority:
                text = f"{life.peer.name} lists what {len(holders)} of {len(roster)} hold, having heard {heard}"
                raise LawBroken("a majority holds it", text)

    def check_effects(self, life: Life, effects: list[Effect]) -> None:
        """What it has just decided; it may be frozen before it is done."""
        for one in effects:
            if (
                type(one) is Send
                and type(one.message) is Commit
                and one.sealed is None
                and one.message is not life.decided
            ):
                life.decided = one.message
                self._check_decided(life, one.message)

    def _check_decided(self, life: Life, commit: Commit) -> None:
        """A leader that commits is heard by a majority, or was without one for all of the isolation time, while it ran."""
        now_s, roster = self._world.now_s, voters_of(life.machine.chain)
        if not life.machine._turn.roster or life.peer.number in self._world.usurpers:
            return
        one = self._round
        patience_s = 1.05 * (one.leader_timeout_s + 2 * one.heartbeat_s) / life.peer.clock_rate
        peers = [peer for peer in map(self._world.by_id, roster) if peer is not None]
        hearing = sum(now_s - peer.words_s.get(life.peer.id, -math.inf) <= patience_s for peer in peers)
        if 2 * (hearing + 1) > len(roster):
            return
        if not commit.commit.minority:
            raise LawBroken("a leader is heard", f"{life.peer.name} commits, heard by {hearing} of {len(roster)}")
        if now_s - life.resumed_s < self.isolation_s / (1.05 * life.peer.clock_rate):
            raise LawBroken("who did not run hears the others first", f"{life.peer.name} commits alone at once")

    def check_unreached(self, life: Life, receiver: Peer) -> None:
        """Nobody is out of reach while a third is connected to both, as both have said."""
        heard, target = life.machine.presence.roll.get(receiver.id), receiver.life
        if heard is None or heard.left or target is None:
            return
        for third in (self._world.by_id(one) for one in heard.status.dialled if one in life.dialled):
            between = None if third is None else third.life
            if between is None or between.is_frozen or between.forwards.refusal(life.peer.id, 0, self._world.now_s):
                continue
            if self._world.traffic.has_link(life, between) and self._world.traffic.has_link(between, target):
                raise LawBroken("one hop reaches", f"{life.peer.name} does not reach {receiver.name} over {third.name}")  # type: ignore[union-attr]

    def check_age(self, life: Life, received: Received, before_s: float) -> None:
        """What others heard some time ago makes nobody be here. `before_s`: when its author was heard, before this."""
        heard, age_s = life.machine.presence.roll.get(received.message.peer), received.age_s or 0.0
        if heard is not None and heard.at_s > max(life.clock_s() - age_s, before_s) + 1e-6:
            raise LawBroken("nothing stale is here", f"{life.peer.name} takes what is {age_s:.0f} s old as new")

    def check_moves_to(self, life: Life, commit: Commit) -> None:
        """Nothing is applied before it is whole."""
        missing = sum(not life.has(root) for root in roots_of(commit.commit))
        if missing:
            raise LawBroken("a commit is whole", f"{life.peer.name} moves without {missing} contributions")

    def _check_sizes(self, life: Life) -> None:
        machine, replica, peers = life.machine, life.replica, len(self._world.peers)
        exchange = machine._exchange
        sizes = {
            "docket": (len(exchange.docket._waiting), 8 * peers),
            "roll": (len(machine.presence.roll._heard), len(self._world._by_id) + 2),
            "held": (len(exchange._held._roots), 4096),
            "retries": (len(exchange._retries_s), 8 * peers),
            "own": (len(exchange._own._known), MAX_OWN),
            "records": (len(replica.contributions), MAX_OWN),
            "blobs": (len(life.shop.store), (MAX_KEPT_COMMITS + 12) * peers + 64),
            "orders": (len(life.shop.handoff.orders), 16),
        }
        for name, (size, limit) in sizes.items():
            if size > limit:
                raise LawBroken("memory is bounded", f"{life.peer.name}: {size} in {name}, at most {limit}")

    # ---------------------------------------------------------------- time

    def disturbed(self) -> None:
        """A fault began or ended."""
        self._quiet_since_s = self._world.now_s

    def watch(self) -> None:
        """Nobody waits for ever: not for blobs or states, and not for a commit where a majority is in order."""
        world = self._world
        for life, doing, since_s in list(self._waits.values()):
            if (
                life.is_alive
                and not life.is_frozen
                and world.now_s - max(since_s, self._quiet_since_s) > self._patience_s()
            ):
                raise LawBroken("every wait ends", f"{life.peer.name} is {doing} since {since_s:.0f} s")
        if world.now_s - self._quiet_since_s <= WATCH_EVERY_S:
            return
        well = self._in_order()
        if not well:
            return
        here = {life.peer.id for life in well}
        chain = max(
            (life.machine.chain for life in well), key=lambda one: (len(here & set(voters_of(one))), _rank(one))
        )
        since_s = max(self._quiet_since_s, self.known[chain.head].at_s)
        voters = voters_of(chain)
        there = here & set(voters)
        if voters and 2 * len(there) > len(voters):
            due_s = self.round_s(len(voters) - len(there), len(voters))
            if world.now_s - since_s > due_s:
                raise LawBroken(
                    "a majority goes on", f"no commit for {world.now_s - since_s:.0f} s, {due_s:.0f} s are enough"
                )

    def round_s(self, missing: int, members: int) -> float:
        """The longest that a round may take where so many of the members do not answer."""
        one = self._round
        take_over_s = one.leader_timeout_s + 3 * one.heartbeat_s
        alone_s = self.isolation_s if 2 * missing >= members else 0.0
        return one.train_deadline_s + 2 * one.exchange_deadline_s + (missing + 2) * take_over_s + alone_s + 30.0

    def _patience_s(self) -> float:
        return 2 * self.isolation_s + 2 * self._round.exchange_deadline_s + 120.0

    def _in_order(self) -> list[Life]:
        """Processes that nothing is wrong with now, and that reach each other."""
        world, now_s = self._world, self._world.now_s
        lives = [life for life in world.lives() if not life.is_starting]
        for fault in world.fate.faults:
            if not getattr(fault, "from_s", now_s + 1) <= now_s < getattr(fault, "to_s", now_s):
                continue
            if isinstance(fault, Lossy | SlowLink):
                return []
            if isinstance(fault, Slow | SlowDisk | DiskFull | Freeze | Usurper):
                lives = [life for life in lives if life.peer.number != fault.peer]
            if isinstance(fault, Withhold):
                lives = [life for life in lives if life.peer.number not in fault.peers]
            if isinstance(fault, Partition):
                inside = [life for life in lives if life.peer.number in fault.side]
                outside = [life for life in lives if life.peer.number not in fault.side]
                lives = inside if len(inside) > len(outside) and fault.other is None else outside
        for one in world.traffic.partitions:
            if any(cuts(one, a.peer.number, b.peer.number) for a in lives for b in lives if a is not b):
                return []
        lives = [life for life in lives if life.peer.number not in world.fate.liars | world.fate.forgeries.keys()]
        return lives if any(life.peer.is_dialable for life in lives) else []


def voters_of(chain: ChainState) -> tuple[PeerId, ...]:
    """Members that count in a majority."""
    return tuple(peer for peer, left in zip(chain.roster, chain.voting, strict=True) if left)


def _rank(chain: ChainState) -> tuple[int, int, bytes]:
    """The order on heads that the protocol page gives."""
    return chain.tokens, chain.version, chain.head.raw
