"""The state of a swarm at one moment, derived from a view: what the dashboard draws, `--once` prints and `--json` gives.

`as_json` is an interface; keys are added, never renamed or removed:

    run, at_unix_s          the run id in hex; when this was true
    version, head, tokens   of the chain, where the peers that take part stand (the highest that two of them share)
    tokens_per_s            of the live peers that take part, as far as the last commits bear out what they say
    heldout_loss, heldout_version    median of what peers tell of the newest version that has one; null when there is none
    num_live, num_peers     peers that are there now; peers known
    digests_equal           whether all peers at an equal head had equal state digests, as far back as this monitor knows
    peers[]                 id, name, device, activity, live, version, head, state_digest, agrees, tokens_per_s, up_bytes,
                            down_bytes, up_bytes_per_s, down_bytes_per_s, train_loss, heldout_loss, checkpoint_version,
                            seen_s_ago, waits_for, trouble, num_bad, addresses[], and time: seconds since its last commit by
                            what they went to (compute_s, encode_s, exchange_s, apply_s, wait_s, upload_s, download_s);
                            dialable: whether this monitor or another peer has dialled it; through: the id of the peer that
                            passes its answers on, null where none does. Who said goodbye is not listed
    rounds[]                oldest first: version, head, tokens, tokens_in_all, listed[], left_out[] (the first of them),
                            num_listed, num_left_out, duration_s, minority, leader, reason, state_digest, num_tellers,
                            digests_equal
    heldout[]               [version, loss] pairs, ascending
    events[]                oldest first: at_unix_s, text, num_tellers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from coordinator.throughput import tokens_per_s
from coordinator.view import TAKES_PART, PeerSeen, RoundSeen, SwarmView, live_peers, middle
from swarm.digest import Digest
from swarm.identity import PeerId


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A line of the peers table."""

    seen: PeerSeen
    is_live: bool
    agrees: bool | None  # state digest equal to most peers' at its version; None: nobody to compare with
    seen_s_ago: float
    is_dialable: bool  # we are connected to it, or a live peer says that it has dialled it

    @property
    def peer(self) -> PeerId:
        return self.seen.status.peer


@dataclass(frozen=True, slots=True)
class Summary:
    """A swarm at one moment."""

    run: Digest
    at_s: float
    version: int
    head: Digest | None
    tokens: int
    tokens_per_s: float
    heldout: tuple[tuple[int, float], ...]  # (version, median loss), ascending
    train: tuple[tuple[int, float], ...]
    throughput: tuple[tuple[float, float], ...]
    rows: tuple[PeerRow, ...]  # live ones first, then by name
    rounds: tuple[RoundSeen, ...]  # oldest first
    digests_equal: bool
    notes: tuple[tuple[float, str, int], ...]  # (unix seconds, text, tellers), oldest first

    @property
    def num_live(self) -> int:
        return sum(row.is_live for row in self.rows)


def summarize(view: SwarmView, now_s: float) -> Summary:
    """What `view` means at `now_s` (unix seconds)."""
    live = live_peers(view, now_s)
    standing = [peer for peer in live if peer.status.activity in TAKES_PART] or live or list(view.peers.values())
    version, head, tokens = _where_they_stand(standing)
    dialled = {other for peer in live for other in peer.status.dialled if other != peer.status.peer}
    rows = sorted(
        (_row(peer, live, dialled, now_s) for peer in view.peers.values() if not peer.has_left),
        key=lambda row: (not row.is_live, row.seen_s_ago > 60.0, row.seen.status.name, row.peer),
    )
    rounds = sorted(
        (one for one in view.rounds.values() if one.event.version <= version + 1),
        key=lambda one: (one.event.version, len(one.digests)),
    )
    return Summary(
        run=view.run,
        at_s=now_s,
        version=version,
        head=head,
        tokens=tokens,
        tokens_per_s=tokens_per_s(live, view.rounds.values()),
        heldout=tuple((one, loss) for one, loss in middle(view.heldout) if one <= version),
        train=tuple((one, loss) for one, loss in middle(view.train) if one <= version),
        throughput=view.throughput,
        rows=tuple(rows),
        rounds=tuple(rounds),
        digests_equal=_are_digests_equal(view),
        notes=tuple((note.at_s, note.text, len(note.tellers)) for note in view.notes),
    )


def _where_they_stand(peers: list[PeerSeen]) -> tuple[int, Digest | None, int]:
    """(version, head, tokens): the highest version that two share, so that no single peer can invent one for all."""
    if not peers:
        return 0, None, 0
    versions = sorted((peer.status.version for peer in peers), reverse=True)
    version = versions[0] if len(versions) <= 2 else versions[1]
    at_it = Counter((peer.status.head, peer.status.tokens) for peer in peers if peer.status.version == version)
    (head, tokens), _ = max(at_it.items(), key=lambda one: (one[1], one[0]))
    return version, head, tokens


def _row(peer: PeerSeen, live: Iterable[PeerSeen], dialled: set[PeerId], now_s: float) -> PeerRow:
    others = [one for one in live if one.status.version == peer.status.version and one is not peer]
    agrees = None
    if others:
        counted = Counter((one.status.head, one.status.state_digest) for one in [*others, peer])
        agrees = counted[peer.status.head, peer.status.state_digest] == max(counted.values())
    is_dialable = (peer.direct and peer.through is None) or peer.status.peer in dialled
    return PeerRow(peer, peer.is_live(now_s), agrees, max(0.0, now_s - peer.seen_at_s), is_dialable)


def _are_digests_equal(view: SwarmView) -> bool:
    """Whether nobody ever differed at an equal head."""
    found: dict[Digest, set[Digest]] = {head: set(one.digests.values()) for head, one in view.rounds.items()}
    for peer in view.peers.values():
        found.setdefault(peer.status.head, set()).add(peer.status.state_digest)
    return all(len(digests) == 1 for digests in found.values())


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values; the keys are in this module's docstring."""
    heldout_version, heldout_loss = summary.heldout[-1] if summary.heldout else (None, None)
    return {
        "run": summary.run.hex(),
        "at_unix_s": round(summary.at_s, 3),
        "version": summary.version,
        "head": summary.head and summary.head.hex(),
        "tokens": summary.tokens,
        "tokens_per_s": round(summary.tokens_per_s, 3),
        "heldout_loss": heldout_loss,
        "heldout_version": heldout_version,
        "num_live": summary.num_live,
        "num_peers": len(summary.rows),
        "digests_equal": summary.digests_equal,
        "peers": [_row_json(row) for row in summary.rows],
        "rounds": [_round_json(one) for one in summary.rounds],
        "heldout": [list(pair) for pair in summary.heldout],
        "events": [
            {"at_unix_s": round(at_s, 3), "text": text, "num_tellers": tellers} for at_s, text, tellers in summary.notes
        ],
    }


def _row_json(row: PeerRow) -> dict[str, Any]:
    status = row.seen.status
    return {
        "id": status.peer.base58,
        "name": status.name,
        "device": status.device,
        "activity": str(status.activity),
        "live": row.is_live,
        "version": status.version,
        "head": status.head.hex(),
        "state_digest": status.state_digest.hex(),
        "agrees": row.agrees,
        "tokens_per_s": round(status.tokens_per_s, 3),
        "up_bytes": status.up_bytes,
        "down_bytes": status.down_bytes,
        "up_bytes_per_s": round(status.up_bytes_per_s, 1),
        "down_bytes_per_s": round(status.down_bytes_per_s, 1),
        "train_loss": status.train_loss,
        "heldout_loss": status.heldout_loss,
        "checkpoint_version": status.checkpoint_version,
        "seen_s_ago": round(row.seen_s_ago, 1),
        "waits_for": status.waits_for,
        "trouble": row.seen.trouble,
        "num_bad": row.seen.num_bad,
        "addresses": list(status.addresses),
        "time": {name: round(seconds, 3) for name, seconds in asdict(status.time).items()},
        "dialable": row.is_dialable,
        "through": row.seen.through and row.seen.through.base58,
    }


def _round_json(one: RoundSeen) -> dict[str, Any]:
    event = one.event
    return {
        "version": event.version,
        "head": event.head.hex(),
        "tokens": event.tokens,
        "tokens_in_all": event.tokens_in_all,
        "listed": [peer.base58 for peer in event.listed],
        "left_out": [peer.base58 for peer in event.left_out],
        "num_listed": event.num_listed,
        "num_left_out": event.num_left_out,
        "duration_s": round(event.duration_s, 3),
        "minority": event.minority,
        "leader": event.leader.base58,
        "reason": event.reason,
        "state_digest": event.state_digest.hex(),
        "num_tellers": len(one.digests),
        "digests_equal": len(set(one.digests.values())) == 1,
    }
