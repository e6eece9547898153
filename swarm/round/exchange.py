"""Contributions and their blobs, seen from one peer: what is announced, who holds it, what is ours, what is to be fetched."""

from __future__ import annotations

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.messages import Contribution
from swarm.round.commits import Listed, OpenSealed
from swarm.round.docket import Docket, may_be_listed
from swarm.round.facts import Fetch
from swarm.round.own import HeldBlobs, OwnContributions, Self


class Exchange:
    """A contribution on the docket is held here whole, being fetched, or waits for another try; never two of these."""

    def __init__(self, me: Self, retry_s: float) -> None:
        self.docket = Docket(me.peer, me.incarnation)
        self._me = me.peer
        self._retry_s = retry_s
        self._own = OwnContributions()
        self._held = HeldBlobs()
        self._retries_s: dict[Digest, float] = {}  # what could not be had, and when to try again

    def holds(self, root: Digest) -> bool:
        """Whether a blob is here whole."""
        return root in self._held

    def opener(self, open_sealed: OpenSealed) -> OpenSealed:
        """`open_sealed`, but for what it has opened already: a commit names again what everybody was told before."""
        return lambda sealed: self.docket.opened(sealed) or open_sealed(sealed)

    def held_waiting(self, count: int, turn: int) -> tuple[Digest, ...]:
        """The blobs held here whose contributions wait for a commit; of more than `count` others each turn."""
        held = tuple(root for root in self.docket.roots() if self._is_here(root))
        first = turn * count % max(1, len(held))
        return held if len(held) <= count else (*held[first:], *held[:first])[:count]

    def pending(self) -> tuple[tuple[Contribution, bytes], ...]:
        """Our own contributions that no commit has listed, oldest first."""
        return self._own.pending()

    def add_own(self, contribution: Contribution, sealed: bytes, chain: ChainState) -> None:
        """A contribution of ours, new or from before a restart."""
        self._own.add(contribution, sealed)
        self._held.add(contribution.root, chain.version)
        self.docket.announce(contribution, sealed, chain)
        self.docket.hold_here(contribution.root)

    def announced(self, contribution: Contribution, sealed: bytes, chain: ChainState) -> tuple[Fetch, ...]:
        """Takes an announcement; returns what to fetch for it."""
        if self.docket.announce(contribution, sealed, chain) is None:
            return ()
        if self._is_here(contribution.root):
            self.docket.hold_here(contribution.root)
            return ()
        return () if contribution.author == self._me else (Fetch(contribution, (contribution.author,)),)

    def listed(self, one: Listed, chain: ChainState) -> tuple[Fetch, ...]:
        """Takes an entry of a commit; returns what to fetch for it: also what is being fetched already, from its author
        alone maybe, as the commit names others who hold it."""
        root = one.contribution.root
        waiting = self.docket.announce_listed(one.contribution, one.sealed, chain)
        if waiting is None:
            return ()
        waiting.named = tuple(peer for peer in one.holders if peer != self._me)
        if self._is_here(root):
            self.docket.hold_here(root)
            return ()
        return (Fetch(one.contribution, waiting.named),)

    def stored(self, root: Digest, version: int) -> None:
        """A blob has come, at this version."""
        self._held.add(root, version)
        self._retries_s.pop(root, None)
        self.docket.hold_here(root)

    def failed(self, root: Digest, now_s: float) -> None:
        """A blob could not be had; it is tried again, from whoever holds it by then."""
        self._retries_s[root] = now_s + self._retry_s

    def retries(self, chain: ChainState, now_s: float) -> tuple[Fetch, ...]:
        """What to fetch once more now, as long as a commit may list it."""
        due = [root for root, due_s in self._retries_s.items() if due_s <= now_s]
        fetches = []
        for root in due:
            del self._retries_s[root]
            waiting = self.docket.get(root)
            if waiting is not None and not self._is_here(root) and may_be_listed(waiting.contribution, chain):
                known = {waiting.contribution.author, *waiting.holders, *waiting.named} - {self._me}
                fetches.append(Fetch(waiting.contribution, tuple(sorted(known))))
        return tuple(fetches)

    def move(self, chain: ChainState, still_pending: tuple[int, ...]) -> None:
        """A new head: what it lists is done with, and own numbers that it undid are back on the docket."""
        self._own.move(still_pending, chain.version)
        self.docket.prune(chain)
        self._held.forget(chain.version, (contribution.root for contribution, _ in self._own.pending()))
        for contribution, sealed in self._own.pending():
            self.docket.announce(contribution, sealed, chain)
            self.docket.hold_here(contribution.root)

    def _is_here(self, root: Digest) -> bool:
        """Whether a blob on the docket is here for as long as it is wanted."""
        waiting = self.docket.get(root)
        return waiting is not None and self._held.holds_for(waiting.contribution)
