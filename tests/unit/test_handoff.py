"""The two queues between the threads: order kept, a stop first, nothing lost before there is a listener."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from peer.blob_store import BlobStore
from peer.handoff import CutNow, Evaluation, Handoff, Moved, SetView, Stop, undone_commits
from swarm.chain import ChainState
from swarm.identity import Keypair
from swarm.messages import Commit
from swarm.round.root import root_at
from tests.unit.small_swarm import log_of, state_at


def test_orders_come_in_the_order_they_were_given() -> None:
    handoff = Handoff()
    for view in range(5):
        handoff.give(SetView(view))
    assert [handoff.next_order(0.0) for _ in range(6)] == [*(SetView(view) for view in range(5)), None]


def test_a_stop_overtakes_and_stays() -> None:
    handoff = Handoff()
    handoff.give(CutNow("now"))
    handoff.stop("first")
    handoff.stop("second")
    handoff.give(CutNow("again"))
    assert [handoff.next_order(0.0) for _ in range(4)] == [Stop("first")] * 4
    assert handoff.stopping == Stop("first")


def test_a_stop_wakes_a_waiting_trainer() -> None:
    handoff = Handoff()
    got: list[object] = []
    trainer = threading.Thread(target=lambda: got.append(handoff.next_order(60.0)))
    trainer.start()
    handoff.stop("end")
    trainer.join(30)
    assert got == [Stop("end")]


def test_an_order_that_comes_while_waiting_is_taken() -> None:
    handoff = Handoff()
    got: list[object] = []
    trainer = threading.Thread(target=lambda: got.append(handoff.next_order(60.0)))
    trainer.start()
    handoff.give(SetView(3))
    trainer.join(30)
    assert got == [SetView(3)]


def test_reports_before_listening_are_delivered_first_and_in_order() -> None:
    handoff = Handoff()
    heard: list[tuple[object, int]] = []
    for number in range(3):
        handoff.report(Evaluation(number, 1.0))

    async def main() -> None:
        ended = asyncio.Event()

        def deliver(report: object) -> None:
            heard.append((report, threading.get_ident()))
            if len(heard) == 200:
                ended.set()

        handoff.listen(asyncio.get_running_loop(), deliver)
        trainer = threading.Thread(target=lambda: [handoff.report(Evaluation(number, 1.0)) for number in range(3, 200)])
        trainer.start()
        await ended.wait()
        trainer.join()

    asyncio.run(main())
    assert [report for report, _ in heard] == [Evaluation(number, 1.0) for number in range(200)]
    assert {thread for _, thread in heard} == {threading.get_ident()}  # the loop's own thread


def test_reports_after_the_loop_was_closed_are_dropped() -> None:
    handoff = Handoff()
    heard: list[object] = []

    async def main() -> None:
        handoff.listen(asyncio.get_running_loop(), heard.append)

    asyncio.run(main())
    handoff.report(Evaluation(1, 1.0))
    assert heard == []


def moved_to(
    chains: Sequence[ChainState], commits: tuple[Commit, ...], stores: Sequence[BlobStore], undone: int = 0
) -> Moved:
    newest_first = tuple(reversed(chains))[:3]
    roots = tuple(map(root_at, newest_first))
    return Moved(state_at(chains[-1], stores), newest_first, roots, commits, (), undone, 0, caught_up=True)


def test_commits_that_the_way_to_the_new_head_leaves_out_are_undone(tmp_path: Path) -> None:
    """One commit for each step back to where the two branches part, whoever is listed in them."""
    authors, stores = [Keypair.generate(), Keypair.generate()], [BlobStore(tmp_path)]
    trunk, to_trunk = log_of(3, authors, stores)
    for length in range(3):
        ours, _ = log_of(length, authors, stores, trunk[-1], b"ours")
        theirs, to_theirs = log_of(2, authors, stores, trunk[-1], b"theirs")
        before = tuple(reversed([*trunk, *ours[1:]]))[:3]
        assert undone_commits(before, moved_to([*trunk, *theirs[1:]], (*to_trunk, *to_theirs), stores)) == length


def test_a_snapshot_undoes_what_it_shows_by_itself(tmp_path: Path) -> None:
    authors, stores = [Keypair.generate()], [BlobStore(tmp_path)]
    ours, _ = log_of(4, authors, stores, salt=b"ours")
    theirs, _ = log_of(6, authors, stores, salt=b"theirs")
    before = tuple(reversed(ours))[:3]
    for version, undone, expected in ((3, 0, 2), (4, 0, 1), (5, 0, 0), (6, 2, 1)):
        assert undone_commits(before, moved_to(theirs[: version + 1], (), stores, undone)) == expected
    assert undone_commits((), moved_to(theirs, (), stores)) == 0
