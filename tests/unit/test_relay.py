"""A relay holds what its authors name to it, however often they have to name it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peer.relay import Relay
from swarm.digest import blob_digest
from swarm.messages import seal_message
from tests.unit.message_examples import RUN
from tests.unit.small_swarm import START, SmallSwarm, contribution_of, run_clean
from tests.unit.test_node import Board, until


def test_a_blob_that_could_not_be_fetched_is_fetched_when_it_is_named_again(tmp_path: Path) -> None:
    """Behind NAT an author was left out of three rounds: its one announcement had come when its blob could not be had."""

    async def main() -> None:
        author, server = await SmallSwarm(tmp_path).hosts(2)
        relay = Relay(SimpleNamespace(board=Board()), server.asker, server.server, server.store, 10_000)  # type: ignore[arg-type]
        running = asyncio.create_task(relay.run())
        blob = bytes(range(200)) * 5
        named = contribution_of(author.key, START, blob_digest(blob), len(blob), 1)
        sealed = seal_message(author.key, RUN, named)

        async def name_it() -> None:
            await author.transport.request(server.id, sealed, timeout_s=5)
            await until(lambda: not relay._fetching)

        await asyncio.sleep(0)
        await name_it()
        assert not server.store.has(named.root), "its author does not have it yet"
        author.store.put(blob)
        await name_it()
        assert server.store.read(named.root, check=True) == blob and relay.num_held == 1
        await name_it()
        assert relay.num_held == 1, "it is here already"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_clean(main())


def test_a_blob_that_has_just_come_is_not_collected_beside_another(tmp_path: Path) -> None:
    """Two came at once: what the end of the one collected was the other, which counted as held from then on."""

    async def main() -> None:
        author, server = await SmallSwarm(tmp_path).hosts(2)
        relay = Relay(SimpleNamespace(board=Board()), server.asker, server.server, server.store, 10_000)  # type: ignore[arg-type]
        running = asyncio.create_task(relay.run())
        fetch = relay._fetcher.fetch

        async def fetched_while_another_ends(*arguments: Any) -> None:
            await fetch(*arguments)
            server.store.collect()

        relay._fetcher.fetch = fetched_while_another_ends  # type: ignore[method-assign]
        await asyncio.sleep(0)
        for number in (1, 2):
            blob = bytes([number]) * 500
            named = contribution_of(author.key, START, author.store.put(blob), len(blob), number)
            await author.transport.request(server.id, seal_message(author.key, RUN, named), timeout_s=5)
            await until(lambda: not relay._fetching)
            assert server.store.has(named.root)
        assert relay.num_held == 2
        server.store.pin("relay", ())
        server.store.collect()
        await author.transport.request(server.id, seal_message(author.key, RUN, named), timeout_s=5)
        await until(lambda: server.store.has(named.root))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_clean(main())
