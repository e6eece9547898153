"""What a monitor remembers across restarts: one SQLite file a run, with events, the newest statuses, and addresses.

Events are kept as the canonical bytes that came from a peer, with columns to look them up by. One event is one row for
each peer that told it; told again, under whatever number (peers count anew after a restart), it is recognised by its bytes.
Writes are in WAL mode: a `kill -9` loses at most the last second and never the file. Growth is bounded: a peer's oldest
events go when it has told more than MAX_EVENTS_PER_PEER, all peers' oldest beyond MAX_EVENTS (about 300 MB).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swarm.digest import Digest, digest_of
from swarm.errors import MalformedBytes, StateError
from swarm.events import Event, read_event
from swarm.identity import PeerId

SCHEMA_VERSION: Final = 1
MAX_EVENTS: Final = 1_000_000
MAX_EVENTS_PER_PEER: Final = 100_000  # about a week of rounds, one every 10 s, from one peer
MAX_STATUSES: Final = 4096  # peers; those not seen for longest go first
MAX_BOOK: Final = 4096  # addresses; those not reached for longest go first
_PRUNE_EVERY: Final = 1000  # insertions
_PRUNE_PUT_EVERY: Final = 64  # statuses, or peers' addresses: looking for the oldest takes milliseconds
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,      -- in the order in which we heard of them
    source BLOB NOT NULL,        -- the peer that told it
    digest BLOB NOT NULL,        -- of body
    number INTEGER NOT NULL,     -- as the source counted it
    at_unix_s REAL NOT NULL,     -- as the source's clock said
    kind TEXT NOT NULL,
    peer BLOB,                   -- whom it speaks of, if of one
    version INTEGER,
    body BLOB NOT NULL,          -- canonical bytes, swarm/events.py
    UNIQUE (source, digest)
);
CREATE INDEX events_by_kind ON events (kind, at_unix_s);
CREATE INDEX events_by_version ON events (version);
CREATE TABLE statuses (peer BLOB PRIMARY KEY, beat INTEGER NOT NULL, seen_at_s REAL NOT NULL, sealed BLOB NOT NULL);
CREATE TABLE addresses (
    address TEXT PRIMARY KEY, peer BLOB NOT NULL, heard_at_s REAL NOT NULL, reached_at_s REAL NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """An event as one peer told it."""

    source: PeerId
    number: int
    at_unix_s: float
    event: Event


class Archive:
    """The open history of one run. Every method is one transaction; none takes longer than a few milliseconds."""

    def __init__(self, path: Path, run: Digest) -> None:
        """Opens or creates the file. Raises StateError when it is damaged, of another run, or of a newer program."""
        self._path = path
        self._inserted = self._put = self._noted = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._prepare(run)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{path}: {error}; remove the file to begin a new history") from None

    def _prepare(self, run: Digest) -> None:
        with self._transaction():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._set("schema", SCHEMA_VERSION)
                self._set("run", run.raw)
        found = dict(self._db.execute("SELECT key, value FROM meta"))
        if found.get("schema") != SCHEMA_VERSION:
            raise StateError(
                f"{self._path}: a history of form {found.get('schema')!r}, this program reads {SCHEMA_VERSION}; "
                "update barnraise or remove the file"
            )
        if found.get("run") != run.raw:
            raise StateError(f"{self._path}: the history of another run; give each run its own --home")

    def _set(self, key: str, value: object) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._db.close()

    def add_events(self, source: PeerId, told: Iterable[tuple[int, bytes]]) -> list[ToldEvent]:
        """Stores events as (number, canonical bytes); returns those that were new. Raises MalformedBytes, storing none."""
        rows = [(number, raw, *read_event(raw)) for number, raw in told]
        new = []
        with self._transaction():
            for number, raw, at_unix_s, event in rows:
                speaks_of: Any = getattr(event, "peer", None) or getattr(event, "leader", None)
                done = self._db.execute(
                    "INSERT OR IGNORE INTO events (source, digest, number, at_unix_s, kind, peer, version, body) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        source.raw,
                        digest_of("archived-event", raw).raw[:16],
                        number,
                        at_unix_s,
                        type(event).__name__,
                        speaks_of and speaks_of.raw,
                        getattr(event, "version", None),
                        raw,
                    ),
                )
                if done.rowcount:
                    new.append(ToldEvent(source, number, at_unix_s, event))
            self._inserted += len(new)
            if self._inserted >= _PRUNE_EVERY:
                self._inserted = 0
                self._prune(source)
        return new

    def _prune(self, source: PeerId) -> None:
        self._db.execute(
            "DELETE FROM events WHERE source = ?1 AND id <= "
            "(SELECT id FROM events WHERE source = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (source.raw, MAX_EVENTS_PER_PEER),
        )
        self._db.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (MAX_EVENTS,))

    def events(self, last: int, *, kind: str | None = None) -> Iterator[ToldEvent]:
        """The newest `last` events (of a kind), oldest first. Rows that this program cannot read are left out."""
        where, args = ("WHERE kind = ?", [kind]) if kind else ("", [])
        rows = self._db.execute(
            f"SELECT source, number, body FROM events {where} ORDER BY id DESC LIMIT ?",
            (*args, last),
        ).fetchall()
        for source, number, body in reversed(rows):
            try:
                at_unix_s, event = read_event(body)
            except MalformedBytes:
                continue
            yield ToldEvent(PeerId(source), number, at_unix_s, event)

    def put_status(self, peer: PeerId, beat: int, sealed: bytes, seen_at_s: float) -> None:
        """Remembers a peer's newest status."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO statuses VALUES (?, ?, ?, ?) ON CONFLICT (peer) DO UPDATE SET beat = excluded.beat, "
                "seen_at_s = excluded.seen_at_s, sealed = excluded.sealed WHERE excluded.beat >= beat",
                (peer.raw, beat, seen_at_s, sealed),
            )
            self._put += 1
            if self._put % _PRUNE_PUT_EVERY == 0:
                self._db.execute(
                    "DELETE FROM statuses WHERE peer NOT IN (SELECT peer FROM statuses ORDER BY seen_at_s DESC LIMIT ?)",
                    (MAX_STATUSES,),
                )

    def statuses(self) -> list[tuple[float, bytes]]:
        """When each peer was last seen, and its sealed status; the newest first."""
        return list(
            self._db.execute("SELECT seen_at_s, sealed FROM statuses ORDER BY seen_at_s DESC LIMIT ?", (MAX_STATUSES,))
        )

    def note_addresses(self, peer: PeerId, addresses: Iterable[str], at_s: float, *, reached: bool = False) -> None:
        """Remembers where a peer says it is, or where it was reached."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO addresses VALUES (?1, ?2, ?3, ?4) ON CONFLICT (address) DO UPDATE SET "
                "heard_at_s = ?3, reached_at_s = max(reached_at_s, ?4)",
                [(address, peer.raw, at_s, at_s if reached else 0.0) for address in addresses],
            )
            self._noted += 1
            if self._noted % _PRUNE_PUT_EVERY == 0:
                self._db.execute(
                    "DELETE FROM addresses WHERE address NOT IN "
                    "(SELECT address FROM addresses ORDER BY reached_at_s DESC, heard_at_s DESC LIMIT ?)",
                    (MAX_BOOK,),
                )

    def address_book(self) -> list[str]:
        """Addresses to try, the ones reached last first."""
        found = self._db.execute(
            "SELECT address FROM addresses ORDER BY reached_at_s DESC, heard_at_s DESC LIMIT ?", (MAX_BOOK,)
        )
        return [address for (address,) in found]

    def reached(self, since_s: float) -> dict[PeerId, list[str]]:
        """Addresses at which peers answered a dial of ours since then, the ones reached last first."""
        rows = self._db.execute(
            "SELECT peer, address FROM addresses WHERE reached_at_s > 0 AND reached_at_s >= ? ORDER BY reached_at_s DESC",
            (since_s,),
        )
        found: dict[PeerId, list[str]] = {}
        for peer, address in rows:
            found.setdefault(PeerId(peer), []).append(address)
        return found


class _Transaction:
    """BEGIN ... COMMIT, or ROLLBACK on an error; a full disk is the user's to mend."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
            return
        self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise StateError(f"the history cannot be written: {error}") from None
