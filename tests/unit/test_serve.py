"""The server: every request answered, everything else refused, and no answer longer than a frame."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peer.blob_store import BlobStore
from peer.handoff import Kept
from peer.serve import KEPT_EVENTS, EventLog, Server
from swarm import messages
from swarm.digest import CHUNK_BYTES, blob_digest, leaves_of
from swarm.errors import BadSignature, RemoteError
from swarm.events import Evaluated, PeerLeft, read_event
from swarm.messages import (
    PURPOSES,
    BlobInfo,
    CheckpointRecord,
    Chunk,
    Commit,
    Contribution,
    CutHint,
    Events,
    GetBlob,
    GetCheckpoint,
    GetChunk,
    GetEvents,
    GetLog,
    GetManifest,
    GetPeers,
    GetState,
    GetStatus,
    Goodbye,
    KnownStatus,
    Log,
    ManifestBytes,
    Peers,
    PeerStatus,
    Refused,
    open_message,
    seal_message,
)
from swarm.wire import MAX_FRAME_BYTES
from tests.unit.message_examples import AUTHOR, RUN, damaged, example_of, keypair
from tests.unit.small_swarm import commit_on, log_of, state_at

ASKER = keypair(2)
BLOB = bytes(range(251)) * 5000
ONE_WAY = (
    "status",
    "contribution",
    "brief",
    "opened",
    "cut",
    "holding",
    "commit",
    "view",
    "barred",
    "goodbye",
)
REQUESTS = tuple(purpose for purpose in PURPOSES if purpose.startswith("get-"))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(AUTHOR, RUN, b"the manifest", BlobStore(tmp_path / "blobs"))


def ask(server: Server, message: object) -> Any:
    """The opened answer; it is checked that it fits a frame and is signed by the server."""
    raw = asyncio.run(server.handle(ASKER.peer_id, seal_message(ASKER, RUN, message)))
    assert len(raw) <= MAX_FRAME_BYTES
    author, answer = open_message(raw, run=RUN)
    assert author == AUTHOR.peer_id
    return answer


def test_blobs_and_chunks(server: Server) -> None:
    root = server._store.put(BLOB)
    assert ask(server, GetBlob(root)) == BlobInfo(len(BLOB), leaves_of(BLOB))
    assert ask(server, GetChunk(root, 1)) == Chunk(BLOB[CHUNK_BYTES:])
    for absent in (GetBlob(blob_digest(b"x")), GetChunk(root, 2), GetChunk(blob_digest(b"x"), 0)):
        assert isinstance(ask(server, absent), Refused)


def test_manifest_and_state(server: Server) -> None:
    assert ask(server, GetManifest()) == ManifestBytes(b"the manifest")
    assert isinstance(ask(server, GetState()), Refused) and isinstance(ask(server, GetLog(())), Refused)
    chains, _ = log_of(1, [AUTHOR], [])
    server.state = state_at(chains[1], [])
    assert ask(server, GetState()) == server.state


def test_where_it_stands_is_said_by_itself_and_only_once_it_runs(server: Server) -> None:
    assert isinstance(ask(server, GetStatus()), Refused)
    status: PeerStatus = example_of(PeerStatus)
    beats = iter([1, 2])
    server.connect(lambda *_: None, list, lambda: replace(status, beat=next(beats)))
    assert [ask(server, GetStatus()) for _ in range(2)] == [replace(status, beat=1), replace(status, beat=2)]


def test_the_log_answers_from_the_newest_head_it_reaches(server: Server) -> None:
    chains, commits = log_of(4, [AUTHOR], [])
    server.state, server.log = state_at(chains[-1], []), commits[1:]
    strange = blob_digest(b"strange")
    for base in range(1, 5):
        heads = (strange, chains[base].head, chains[1].head)
        assert ask(server, GetLog(heads)) == Log(chains[base].head, commits[base:])
    for heads in ((strange,), (chains[0].head,), ()):
        assert isinstance(ask(server, GetLog(heads)), Refused)
    server.log = ()  # as after a snapshot: it still knows where it stands
    assert ask(server, GetLog((chains[-1].head,))) == Log(chains[-1].head, ())


def test_a_log_of_big_commits_comes_in_pages_that_fit(server: Server) -> None:
    """16 commits, each near half a frame: holders and entries count as well as announcements."""
    first = commit_on(log_of(0, [AUTHOR], [])[0][0], [AUTHOR], [])
    big = replace(
        first,
        announcements=first.announcements * 300,
        holders=(messages.Holders((AUTHOR.peer_id,) * 30),) * 300,
        commit=replace(first.commit, entries=first.commit.entries * 300),
    )
    parents = [blob_digest(bytes([number])) for number in range(17)]
    server.log = tuple(replace(big, parent=parent) for parent in parents[:16])
    chains, _ = log_of(1, [AUTHOR], [])
    server.state = state_at(replace(chains[1], head=parents[16]), [])
    seen = 0
    while seen < 16:
        answer = ask(server, GetLog((parents[seen],)))
        assert isinstance(answer, Log) and answer.base == parents[seen] and answer.commits
        assert answer.commits == server.log[seen : seen + len(answer.commits)]
        seen += len(answer.commits)
    too_big = replace(big, holders=(messages.Holders((AUTHOR.peer_id,) * 64),) * 1024)
    server.log = (replace(too_big, parent=parents[0]),)
    assert isinstance(ask(server, GetLog((parents[0],))), Refused)


def test_a_thousand_statuses_come_in_pages_that_fit(server: Server) -> None:
    statuses = [KnownStatus(bytes([number % 256]) * (4096 - number % 7), float(number)) for number in range(1000)]
    server.connect(lambda *_: None, lambda: statuses)
    seen: list[KnownStatus] = []
    while len(seen) < len(statuses):
        page = ask(server, GetPeers(len(seen)))
        assert isinstance(page, Peers) and page.total == 1000 and page.known
        seen += page.known
    assert seen == statuses
    assert ask(server, GetPeers(2**32 - 1)) == Peers(1000, ())


def test_events_come_in_order_in_pages_that_fit_and_numbers_go_on(server: Server) -> None:
    for number in range(700):
        server.events.add(float(number), PeerLeft(AUTHOR.peer_id, "\u2603" * 133))
    seen, since = [], 0
    while page := ask(server, GetEvents(since)):
        assert isinstance(page, Events)
        if not page.events:
            break
        assert page.next == since + len(page.events)
        seen += [read_event(raw)[0] for raw in page.events]
        since = page.next
    assert seen == [float(number) for number in range(700)]
    assert since == 700


def test_event_numbers_across_a_restart_and_a_long_absence() -> None:
    log = EventLog()
    assert log.behind(0) == Events(0, ())
    for number in range(KEPT_EVENTS + 10):
        log.add(float(number), Evaluated(number, 1.0))
    page = log.behind(5)
    assert read_event(page.events[0])[0] == 10.0  # the oldest that is kept
    assert page.next == 10 + len(page.events)
    restarted = EventLog()
    restarted.add(1.0, Evaluated(1, 1.0))
    assert restarted.behind(page.next) == Events(1, (restarted.behind(0).events[0],))  # a number of a former life


def test_checkpoints_are_offered_while_their_files_are_there(server: Server, tmp_path: Path) -> None:
    assert isinstance(ask(server, GetCheckpoint(None)), Refused)
    record: CheckpointRecord = example_of(CheckpointRecord)
    for version in (1, 4):
        path = tmp_path / f"file-{version}"
        path.write_bytes(b"x")
        server.checkpoints[version] = Kept(replace(record, version=version), ((blob_digest(b"x"), str(path)),))
    assert ask(server, GetCheckpoint(None)).version == 4
    assert ask(server, GetCheckpoint(1)).version == 1
    assert "[1, 4]" in ask(server, GetCheckpoint(2)).reason
    (tmp_path / "file-4").unlink()  # pruned by the trainer
    assert ask(server, GetCheckpoint(None)).version == 1
    assert isinstance(ask(server, GetCheckpoint(4)), Refused)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_kind_is_a_request_a_one_way_message_or_refused(server: Server, purpose: str) -> None:
    heard: list[tuple[Any, Any, bytes]] = []
    server.connect(lambda *what: heard.append(what), list)
    message = example_of(PURPOSES[purpose])
    signer = AUTHOR if purpose in ("status", "contribution") else ASKER  # what speaks of a peer is signed by it
    raw = seal_message(signer, RUN, message)
    if purpose in ONE_WAY:
        assert asyncio.run(server.handle(signer.peer_id, raw)) == b""
        assert heard == [(signer.peer_id, message, raw)]
    elif purpose in REQUESTS:
        assert ask(server, message) is not None and heard == []
    else:
        with pytest.raises(RemoteError, match="not a request"):
            asyncio.run(server.handle(signer.peer_id, raw))
        assert heard == []


def test_nobody_speaks_for_another_but_what_speaks_of_its_author_is_passed_on(server: Server) -> None:
    heard: list[Any] = []
    server.connect(lambda sender, message, raw: heard.append((sender, message)), list)
    for message in (Goodbye("left", 1), GetState(), CutHint(0, blob_digest(b"head"), "now")):
        with pytest.raises(BadSignature, match="passed on"):
            asyncio.run(server.handle(ASKER.peer_id, seal_message(AUTHOR, RUN, message)))
    for kind in (PeerStatus, Contribution):
        heard.clear()
        asyncio.run(server.handle(ASKER.peer_id, seal_message(AUTHOR, RUN, example_of(kind))))
        assert heard == [(ASKER.peer_id, example_of(kind))]
    heard.clear()
    asyncio.run(server.handle(ASKER.peer_id, seal_message(AUTHOR, RUN, example_of(Commit))))
    assert heard == [(AUTHOR.peer_id, example_of(Commit))], "a commit is its leader's, whoever brings it"


def test_a_status_that_could_not_be_passed_on_is_none(server: Server) -> None:
    long = replace(example_of(PeerStatus), holding=tuple(blob_digest(bytes([number])) for number in range(256)))
    with pytest.raises(RemoteError, match="length 256 exceeds 32"):
        asyncio.run(server.handle(AUTHOR.peer_id, seal_message(AUTHOR, RUN, long)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_bytes_cost_their_sender_the_stream(server: Server, data: st.DataObject) -> None:
    whole = seal_message(ASKER, RUN, GetLog((blob_digest(b"a"),)))
    raw = data.draw(damaged(whole) | st.binary(max_size=200))
    try:
        answer = asyncio.run(server.handle(ASKER.peer_id, raw))
    except RemoteError:
        return
    assert raw == whole and open_message(answer, run=RUN)


def test_another_run_is_refused(server: Server) -> None:
    with pytest.raises(BadSignature):
        asyncio.run(server.handle(ASKER.peer_id, seal_message(ASKER, blob_digest(b"another run"), GetState())))
