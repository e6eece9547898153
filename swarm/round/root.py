"""Root: the last head of our chain that a majority of the root before it stands behind, in signed words.

Knowledge of one peer, not of the chain: the votes of a head lie in the commit behind it, outside the hashed list. Whoever
mines with invented ids, or alone, has no majority of an older root; so the voters of the root say which of two heads to
follow (`fork.py`), and no head of a branch vouches for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from swarm.chain import MAX_ROSTER, ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.schema import U63, MaxLen

_Peers = Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]


@dataclass(frozen=True, slots=True)
class Root:
    """A head, its voters, and who of these has voted for later heads of this branch since."""

    version: U63
    head: Digest
    voters: _Peers  # sorted; none at genesis, which nobody stays at
    backers: _Peers = ()  # sorted


def root_at(chain: ChainState) -> Root:
    """A root at this head: of a run that begins, or of a state that was taken from others."""
    return Root(chain.version, chain.head, chain.voters)


def root_after(root: Root, parent: ChainState, voted: frozenset[PeerId], child: ChainState) -> Root:
    """The root of `child`, the head behind a commit on `parent` that carries the votes of these for `parent`."""
    if not root.voters:
        return root_at(child)  # genesis has no voters: those whose work is listed first are the first ones
    if parent.version <= root.version:
        return root
    backers = {*root.backers, *(voted & frozenset(root.voters))}
    if is_majority(len(backers), len(root.voters)):
        return root_at(parent)
    return replace(root, backers=tuple(sorted(backers)))
