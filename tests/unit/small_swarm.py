"""A few peers' servers, stores and askers over the network in memory, and real signed commits for them to serve."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from peer.blob_store import BlobStore
from peer.fetch import Asker
from peer.forwarding import Forwarding
from peer.serve import Server
from swarm.chain import ChainState, CommitList, Entry, apply, genesis, head_after, is_majority, leader_of
from swarm.digest import Digest, blob_digest, digest_of
from swarm.identity import Keypair, PeerId
from swarm.lease import LeaseSize
from swarm.messages import (
    Commit,
    Contribution,
    Holders,
    PeerStatus,
    StateRecord,
    UnitState,
    is_issue,
    is_vote,
    open_message,
    seal_message,
    sign_issue,
    sign_vote,
)
from swarm.net.simnet import SimNet, SimTransport
from swarm.round.commits import Verifier
from swarm.round.root import Root, root_after, root_at
from swarm.votes import Votes, gather, stand_at, voted_by
from tests.unit.message_examples import RUN, example_of, keypair

LEASE = 4
LEASE_SIZE = LeaseSize(LEASE, 4096)
_Result = TypeVar("_Result")


def open_sealed(sealed: bytes) -> object:
    return open_message(sealed, run=RUN)[1]


VERIFIER = Verifier(open_sealed, partial(is_vote, RUN), partial(is_issue, RUN))
STATE = digest_of("test", b"a state that all have")


@dataclass(slots=True)
class Host:
    """One peer without a trainer."""

    key: Keypair
    transport: SimTransport
    store: BlobStore
    server: Server
    asker: Asker

    @property
    def id(self) -> PeerId:
        return self.key.peer_id


class SmallSwarm:
    """Hosts that know each other. Made inside a running loop."""

    def __init__(self, folder: Path, latency_s: float = 0.0) -> None:
        self.net = SimNet(seed=1, latency_s=latency_s, bandwidth=1e12)
        self._folder = folder

    def host(self, number: int) -> Host:
        key = keypair(number)
        transport = self.net.transport(key)
        store = BlobStore(self._folder / f"blobs-{number}")
        host = Host(
            key,
            transport,
            store,
            Server(key, RUN, b"manifest", store, forwarding=Forwarding(transport, RUN)),
            Asker(transport, key, RUN),
        )
        transport.serve(host.server.handle)
        return host

    async def hosts(self, count: int) -> list[Host]:
        made = [self.host(number) for number in range(1, count + 1)]
        for place, one in enumerate(made):
            for other in made[place + 1 :]:
                await one.transport.connect(other.transport.addresses()[0], timeout_s=5)
        return made


def run_clean(main: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `main`; fails if it leaves a task behind."""

    async def watched() -> _Result:
        result = await main
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(watched())


START = genesis(RUN, digest_of("test", b"version 0"))


def contribution_of(author: Keypair, chain: ChainState, blob: Digest, num_bytes: int, seq: int) -> Contribution:
    return Contribution(
        author=author.peer_id,
        incarnation=1,
        seq=seq,
        root=blob,
        num_bytes=num_bytes,
        first_unit=0,
        end_unit=1,
        tokens=100,
        steps=2,
        since_version=chain.version,
        version=chain.version,
        head=chain.head,
    )


def commit_on(
    chain: ChainState,
    authors: Sequence[Keypair],
    stores: Sequence[BlobStore],
    salt: bytes = b"",
    num_holders: int = 0,
    admitted: Sequence[Keypair] = (),
) -> Commit:
    """The next commit, one contribution of each author, and who is admitted besides; its blobs are put into every one of
    the stores. The authors have voted for its parent; the leader of view 0 has issued it, if it is one of them."""
    signed = []
    for author in authors:
        blob = digest_of("test", salt, chain.head.raw, author.peer_id.raw).raw * 40
        root = blob_root(stores, blob)
        contribution = contribution_of(author, chain, root, len(blob), chain.highest_seq(author.peer_id) + 1)
        signed.append((contribution, seal_message(author, RUN, contribution)))
    signed.sort(key=lambda one: (one[0].author, one[0].seq))
    entries = tuple(
        Entry(one.author, one.seq, one.incarnation, one.root, one.first_unit, one.end_unit, one.tokens, one.steps)
        for one, _ in signed
    )
    holders = Holders(tuple(author.peer_id for author in authors)[:1] * max(1, num_holders))
    votes = votes_of(chain, authors)
    is_minority = bool(chain.roster) and not is_majority(
        0 if votes is None else len(votes.signatures), len(chain.voters)
    )
    others = tuple(sorted(key.peer_id for key in admitted))
    chosen = CommitList(entries, others, minority=is_minority)
    leader = next((one for one in authors if one.peer_id == leader_of(0, chain.order)), authors[0])
    return Commit(
        view=0,
        parent=chain.head,
        commit=chosen,
        announcements=tuple(sealed for _, sealed in signed),
        holders=(holders,) * len(entries),
        reason="a test",
        votes=votes,
        issued=sign_issue(leader, RUN, 0, head_after(chain.head, chosen)),
    )


def votes_of(chain: ChainState, authors: Sequence[Keypair]) -> Votes | None:
    """The votes for this head of those of them who have one."""
    stand = stand_at(chain, STATE)
    signed = {one.peer_id: sign_vote(one, RUN, stand) for one in authors if one.peer_id in chain.voters}
    return gather(chain, STATE, signed, len(signed)) if signed else None


def blob_root(stores: Sequence[BlobStore], blob: bytes) -> Digest:
    for store in stores:
        store.put(blob, durable=False)
    return blob_digest(blob)


def log_of(
    length: int, authors: Sequence[Keypair], stores: Sequence[BlobStore], chain: ChainState = START, salt: bytes = b""
) -> tuple[list[ChainState], tuple[Commit, ...]]:
    """The states from `chain` on, and the commits between them."""
    chains, commits = [chain], []
    for _ in range(length):
        commit = commit_on(chains[-1], authors, stores, salt)
        assert commit.parent == chains[-1].head
        commits.append(commit)
        chains.append(apply(chains[-1], commit.commit, LEASE))
        assert chains[-1].head == head_after(chains[-2].head, commit.commit)
    return chains, tuple(commits)


def roots_along(chains: Sequence[ChainState], commits: Sequence[Commit], first: Root | None = None) -> tuple[Root, ...]:
    """The root of each of these heads, with these commits between them; of the first one itself, if no other is given."""
    roots = [first or root_at(chains[0])]
    for chain, commit, child in zip(chains, commits, chains[1:], strict=False):
        roots.append(root_after(roots[-1], chain, voted_by(chain, commit.votes), child))
    return tuple(roots)


def status_at(peer: PeerId, chain: ChainState) -> PeerStatus:
    """What a peer says that stands there."""
    status: PeerStatus = example_of(PeerStatus)
    return replace(status, peer=peer, head=chain.head, version=chain.version, tokens=chain.tokens, pending=None)


def state_at(chain: ChainState, stores: Sequence[BlobStore], salt: bytes = b"", num_units: int = 2) -> StateRecord:
    """A snapshot of that chain state with its blobs in the stores."""
    blobs = [digest_of("unit", salt, chain.head.raw, bytes([unit])).raw * 100 for unit in range(num_units)]
    return StateRecord(chain, tuple(UnitState(blob_root(stores, blob), len(blob)) for blob in blobs))


def richer(chain: ChainState, tokens: int) -> ChainState:
    """The same with more tokens than it has: what a liar would report."""
    return replace(chain, tokens=chain.tokens + tokens, head=digest_of("test", b"lie", tokens.to_bytes(8, "big")))
