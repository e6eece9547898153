"""Two branches of one run, small enough to list by hand."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.chain import ChainState, CommitList, Entry, apply, genesis, is_majority
from swarm.digest import ZERO_DIGEST, digest_of
from swarm.identity import PeerId
from tests.unit.message_examples import RUN

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 6))
LEASE = 7
START = genesis(RUN, ZERO_DIGEST)


def entry(author: PeerId, seq: int, tokens: int) -> Entry:
    root = digest_of("test", author.raw, seq.to_bytes(8, "little"))
    return Entry(author, seq, 1, root, 0, 4, tokens, 3)


@dataclass(frozen=True)
class Branch:
    """A chain with what it lists, as a plain set: author, number -> tokens."""

    state: ChainState
    listed: dict[tuple[PeerId, int], int]

    def grow(self, authors: tuple[PeerId, ...], tokens: int, rounds: int = 1) -> Branch:
        state, listed = self.state, dict(self.listed)
        for _ in range(rounds):
            entries = tuple(sorted(entry(one, state.highest_seq(one) + 1, tokens) for one in authors))
            is_minority = bool(state.roster) and not is_majority(len({*state.voters} & {*authors}), len(state.voters))
            state = apply(state, CommitList(entries, (), minority=is_minority), LEASE)
            listed |= {(one.author, one.seq): one.tokens for one in entries}
        return Branch(state, listed)


FORK = Branch(START, {}).grow(PEERS, 10, rounds=3)
OURS, THEIRS = FORK.grow(PEERS[:3], 20, rounds=5), FORK.grow(PEERS[3:], 20, rounds=5)
