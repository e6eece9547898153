"""The way to another head, and back from one that came to nothing."""

from __future__ import annotations

from dataclasses import replace

from swarm.chain import Merge, genesis
from swarm.config import RoundConfig, RunConfig
from swarm.digest import digest_of
from swarm.identity import PeerId
from swarm.messages import MergeOffer, PeerStatus
from swarm.round.exchange import Exchange
from swarm.round.facts import CatchUp, Send
from swarm.round.outbox import Outbox
from swarm.round.own import Self
from swarm.round.passage import Passage
from swarm.round.presence import Presence
from swarm.round.turn import Turn
from tests.unit.message_examples import RUN, example_of

ME, BETTER = PeerId(bytes([1]) * 32), PeerId(bytes([2]) * 32)
OWN = replace(
    genesis(RUN, RUN),
    head=digest_of("test", b"own"),
    version=6,
    tokens=600,
    roster=(ME,),
    entered=(0,),
    dialable=bytes(1),
)
MERGE = Merge(OWN.head, OWN.tokens, 9, (), digest_of("test", b"base"), digest_of("test", b"blob"), 1000)
PATIENCE_S = 30.0


class Branch:
    """A peer on a branch of its own, and what it does."""

    def __init__(self) -> None:
        self.out = Outbox(ME)
        self.presence = Presence(ME, silence_s=4.0)
        turn = Turn(OWN, self.presence, 0, PATIENCE_S, 4.0)
        self.exchange = Exchange(Self(ME, "me", "cpu", 1), 1.0)
        self.passage = Passage(
            turn, self.exchange, self.out, RunConfig(round=RoundConfig(heartbeat_s=1.0)), lambda sealed: sealed
        )

    def hear_of_better(self, now_s: float) -> None:
        status: PeerStatus = example_of(PeerStatus)
        head = digest_of("test", b"better")
        better = replace(status, peer=BETTER, beat=int(now_s), head=head, version=9, tokens=900)
        self.presence.hear(better, b"sealed", now_s)

    def prepare_merge(self, now_s: float) -> None:
        """Catching up has found that the branch is deep, and made what is needed for its merge."""
        self.passage.catch_up((BETTER,), whole=False, reason="a better head")
        self.passage.prepared(MERGE, now_s)

    def wishes(self) -> list[CatchUp]:
        return [effect for effect in self.out.take() if isinstance(effect, CatchUp)]


def test_a_branch_offers_itself_while_somebody_is_ahead() -> None:
    branch = Branch()
    branch.hear_of_better(1.0)
    branch.prepare_merge(1.0)
    branch.out.take()
    branch.passage.tend_merge(PATIENCE_S, 1.0)
    offer, wish = branch.out.take()
    assert offer == Send(BETTER, MergeOffer(ME, MERGE))
    assert isinstance(wish, CatchUp) and wish.merges and not wish.gives_up and wish.peers == (BETTER,)
    branch.passage.tend_merge(PATIENCE_S, 1.5)
    assert not branch.out.take(), "one look at a time"
    branch.passage.look_again()
    assert branch.passage.is_merging and branch.passage.is_syncing
    branch.hear_of_better(40.0)
    branch.passage.tend_merge(PATIENCE_S, 40.0)
    (last,) = branch.wishes()
    assert last.gives_up


def test_a_branch_that_nobody_is_left_to_merge_trains_on() -> None:
    branch = Branch()
    branch.hear_of_better(1.0)
    branch.prepare_merge(1.0)
    branch.passage.tend_merge(PATIENCE_S, 20.0)  # who was ahead is silent
    assert branch.passage.is_syncing
    branch.passage.tend_merge(PATIENCE_S, 40.0)
    assert not branch.passage.is_syncing and not branch.passage.is_merging


def test_who_gave_its_merge_up_waits_for_nothing() -> None:
    """Once stuck for ever: what was prepared made the next catching up wait for a merge that was offered to nobody."""
    branch = Branch()
    branch.prepare_merge(1.0)
    branch.passage.tend_merge(PATIENCE_S, 40.0)
    branch.hear_of_better(41.0)
    branch.passage.look_ahead(41.0)
    (wish,) = branch.wishes()[-1:]
    assert branch.passage.is_syncing and not wish.merges
    branch.passage.look_again()
    assert not branch.passage.is_syncing
