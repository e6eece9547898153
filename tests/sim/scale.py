"""What a round costs as a swarm grows: messages and bytes of a peer, and what its leader has to do.

python -m tests.sim.scale --peers 10 100 1000 --rounds 20
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.sim.crowd import Crowd, round_config


def figures(crowd: Crowd, took_s: float) -> dict[str, float]:
    """Means over the counted rounds; a member's per member and round, the leader's per peer and round and per round."""
    peer_rounds, rounds = crowd.peer_rounds, crowd.num_rounds
    peers = peer_rounds / rounds
    members, leader = crowd.members, crowd.leader
    member_rounds = max(1.0, peer_rounds - rounds)
    last, first = max(crowd.reached_s), max(crowd.reached_s) - rounds
    return {
        "peers": peers,
        "round_s": (crowd.reached_s[last] - crowd.reached_s[first]) / rounds,
        "member_sent": members.sent / member_rounds,
        "member_received": members.received / member_rounds,
        "member_sent_bytes": members.sent_bytes / member_rounds,
        "member_received_bytes": members.received_bytes / member_rounds,
        "member_blobs": members.blobs / member_rounds,
        "member_cpu_ms": 1e3 * members.cpu_s / member_rounds,
        "records_read": (members.records_read + leader.records_read) / peer_rounds,
        "record_bytes_read": (members.record_bytes_read + leader.record_bytes_read) / peer_rounds,
        "records_written": (members.records_written + leader.records_written) / peer_rounds,
        "leader_sent": leader.sent / peer_rounds,
        "leader_received": leader.received / peer_rounds,
        "leader_sent_bytes": leader.sent_bytes / peer_rounds,
        "leader_received_bytes": leader.received_bytes / peer_rounds,
        "leader_round_sent_bytes": leader.sent_bytes / rounds,
        "leader_cpu_ms_per_peer": 1e3 * leader.cpu_s / peer_rounds,
        "leader_cpu_ms": 1e3 * leader.cpu_s / rounds,
        "leader_cpu_share": leader.cpu_s / (crowd.reached_s[last] - crowd.reached_s[first]),
        "caught_up": crowd.missed / peer_rounds,
        "took_s": took_s,
    }


ROWS = (
    ("seconds a round", "round_s", "{:.1f}"),
    ("a member, a round: messages sent", "member_sent", "{:.1f}"),
    ("  messages received", "member_received", "{:.1f}"),
    ("  kB sent", "member_sent_bytes", "k"),
    ("  kB received", "member_received_bytes", "k"),
    ("  blobs fetched", "member_blobs", "{:.1f}"),
    ("  ms of its machine", "member_cpu_ms", "{:.2f}"),
    ("a peer, a round: records read from the noticeboard", "records_read", "{:.0f}"),
    ("  kB of them", "record_bytes_read", "k"),
    ("  records written", "records_written", "{:.1f}"),
    ("  commits that did not arrive by themselves", "caught_up", "{:.3f}"),
    ("the leader, a peer and round: messages sent", "leader_sent", "{:.1f}"),
    ("  messages received", "leader_received", "{:.1f}"),
    ("  kB sent", "leader_sent_bytes", "k"),
    ("  kB received", "leader_received_bytes", "k"),
    ("  ms of its machine", "leader_cpu_ms_per_peer", "{:.3f}"),
    ("the leader, a round: MB sent", "leader_round_sent_bytes", "M"),
    ("  ms of its machine", "leader_cpu_ms", "{:.0f}"),
    ("  of the time, %", "leader_cpu_share", "%"),
    ("seconds that this took", "took_s", "{:.0f}"),
)


def table(columns: Sequence[tuple[int, dict[str, float]]]) -> str:
    """The figures as a Markdown table, a column for each size."""

    def cell(value: float, form: str) -> str:
        scales = {"k": (1e-3, "{:.1f}"), "M": (1e-6, "{:.2f}"), "%": (1e2, "{:.2f}")}
        factor, shown = scales.get(form, (1.0, form))
        return shown.format(value * factor)

    lines = [f"| N | {' | '.join(str(size) for size, _ in columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for label, name, form in ROWS:
        lines.append(f"| {label} | {' | '.join(cell(found[name], form) for _, found in columns)} |")
    return "\n".join(lines)


def measure(peers: int, rounds: int, seed: int = 0, **changes: Any) -> tuple[Crowd, dict[str, float]]:
    """The crowd after so many rounds, and what they cost."""
    began_s = time.perf_counter()
    crowd = Crowd(peers, seed, round_config(peers, **changes)).run(rounds)
    return crowd, figures(crowd, time.perf_counter() - began_s)


def by_kind(crowd: Crowd) -> str:
    """What is sent, by kind: messages and bytes, a member's a round and the leader's a peer and round."""
    lines = []
    for name, role in (("member", crowd.members), ("leader", crowd.leader)):
        for kind, number in role.kinds.most_common():
            share = number / crowd.peer_rounds
            lines.append(
                f"  {name:7} {kind:14} {share:9.2f} messages {role.kind_bytes[kind] / crowd.peer_rounds:10.0f} B"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", action="store_true", help="what is sent, by kind of message")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    wanted = parser.parse_args(arguments)
    columns = []
    for peers in wanted.peers:
        crowd, found = measure(peers, wanted.rounds, wanted.seed)
        columns.append((peers, found))
        print(f"{peers} peers: {wanted.rounds} rounds in {found['took_s']:.0f} s", file=sys.stderr, flush=True)
        if wanted.kinds:
            print(by_kind(crowd), file=sys.stderr, flush=True)
    print(table(columns))
    if wanted.json:
        with open(wanted.json, "w") as file:
            json.dump({str(size): found for size, found in columns}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
