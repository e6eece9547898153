"""The two queues between the threads: order kept, a stop first, nothing lost before there is a listener."""

from __future__ import annotations

import asyncio
import threading

from peer.handoff import CutNow, Evaluation, Handoff, SetView, Stop


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
