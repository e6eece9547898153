"""The monitor on a terminal: header, sparklines, peers, rounds, news; from 80x24 up. Pure: a summary in, a picture out.

Remote text enters as plain `Text` cells and is never parsed as markup; `coordinator/clean.py` has made it harmless before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.summary import PeerRow, Summary
from coordinator.view import RoundSeen
from swarm.identity import PeerId

_BARS: Final = "▁▂▃▄▅▆▇█"
NEWS_S: Final = 10.0  # news older than this are told with their age: a line every 5 s, of what peers tell each second
_WIDE: Final = 110  # columns from which the device has a column of its own


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as `width` bars at most, each the mean of its share, scaled from the lowest to the highest."""
    if not values or width < 1:
        return ""
    num = min(width, len(values))
    edges = [len(values) * index // num for index in range(num + 1)]
    shares = [values[low:high] for low, high in pairwise(edges)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def short(number: float) -> str:
    """A number in at most five letters: 950, 12.3k, 4.56M."""
    for limit, suffix in ((1e3, ""), (1e6, "k"), (1e9, "M"), (1e12, "G"), (1e15, "T")):
        if abs(number) < limit * 0.9995:
            value = number / (limit / 1e3)
            size = abs(value)  # as it is shown: 9.996 becomes 10.0
            digits = 0 if size >= 99.95 or (not suffix and value == int(value)) else 2 if size < 9.995 else 1
            return f"{value:.{digits}f}{suffix}"
    return f"{number:.0e}"


def ago(seconds: float) -> str:
    """A time span in at most four letters."""
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "m"), (86_400 * 2, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{min(999, seconds / 86_400):.0f}d"


def draw(summary: Summary, width: int, height: int | None) -> RenderableType:
    """The whole picture; `height=None` leaves nothing out."""
    num_peers, num_rounds, num_notes = _shares(summary, height)
    parts: list[RenderableType] = [*_header(summary, width), Text()]
    parts.append(_peers_table(summary.rows[:num_peers], summary.rows, width))
    if (more := len(summary.rows) - num_peers) > 0:
        parts.append(Text(f" and {more} more peers", style="dim"))
    if summary.rounds:
        parts += [Text(), _rounds_table(summary.rounds[-num_rounds:][::-1], summary)]
    if summary.notes and num_notes:
        parts.append(Text())
        parts += [_note(summary.at_s, *note) for note in summary.notes[-num_notes:][::-1]]
    return Group(*parts)


def _shares(summary: Summary, height: int | None) -> tuple[int, int, int]:
    """Lines for peers, rounds and news."""
    peers, rounds, notes = len(summary.rows), len(summary.rounds), len(summary.notes)
    if height is None:
        return peers, max(1, min(20, rounds)), min(20, notes)
    room = max(3, height - 10)  # header, headings, gaps
    peers = min(peers, max(2, room - min(rounds, 4) - min(notes, 3) - 1))
    rounds = min(rounds, max(1, room - peers - min(notes, 3) - 1))
    return peers, max(1, rounds), max(0, min(notes, room - peers - rounds - 1))


def _header(summary: Summary, width: int) -> list[Text]:
    equal = Text("digests equal", "green") if summary.digests_equal else Text("DIGESTS DIFFER", "bold red")
    first = Text(" barnraise", "bold").append(f"  run {summary.run}  version {summary.version}  ", "default")
    first.append(f"peers {summary.num_live} live of {len(summary.rows)}  ").append_text(equal)
    second = Text(f" {short(summary.tokens)} tokens  {short(summary.tokens_per_s)} tokens/s  ")
    if summary.heldout:
        version, loss = summary.heldout[-1]
        second.append(f"held-out loss {loss:.4f} at version {version}", "bold")
    else:
        second.append("no held-out loss yet", "dim")
    kind, series = ("held-out", summary.heldout) if len(summary.heldout) > 1 else ("train", summary.train)
    losses = [loss for _, loss in series]
    room = max(10, width - 34)
    third = Text(" loss     ").append(sparkline(losses, room), "cyan")
    if losses:
        third.append(f" {kind} {losses[0]:.3f} to {losses[-1]:.3f}", "dim")
    rates = [rate for _, rate in summary.throughput]
    fourth = Text(" tokens/s ").append(sparkline(rates, room), "magenta")
    if rates:
        fourth.append(f" at most {short(max(rates))}", "dim")
    for line in (first, second, third, fourth):
        line.no_wrap, line.overflow = True, "ellipsis"
    return [first, second, third, fourth]


def _table(*columns: tuple[str, str, int | None]) -> Table:
    """A table without lines; columns are (heading, justify, width), None takes what is left."""
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=True, header_style="dim", expand=True)
    for heading, justify, width in columns:
        table.add_column(
            heading,
            justify="right" if justify == "right" else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=width,
            ratio=None if width else 1,
        )
    return table


def _way_to(row: PeerRow, names: Mapping[PeerId, str]) -> str:
    """How a peer is reached, where it is not by a connection."""
    through = row.seen.through
    if through is not None and row.is_live:
        return f"through {names.get(through, 'a relay') or through}"  # a relay has no status
    return "behind NAT" if row.is_live and row.seen.trouble and not row.is_dialable else ""


def _peers_table(rows: Sequence[PeerRow], all_rows: Sequence[PeerRow], width: int) -> Table:
    is_wide = width >= _WIDE
    device: list[tuple[str, str, int | None]] = [("DEVICE", "left", 20)] if is_wide else []
    table = _table(
        ("PEER", "left", 18 if is_wide else 10),
        ("ID", "left", 8),
        *device,
        ("STATE", "left", 8),
        ("VER", "right", 5),
        ("DIGEST", "left", 9),
        ("TOK/S", "right", 5),
        ("UP/S", "right", 5),
        ("DOWN/S", "right", 6),
        ("SEEN", "right", 4),
        ("WAITS FOR", "left", None),
    )
    names = {row.peer: row.seen.status.name for row in all_rows}
    for row in rows:
        status = row.seen.status
        state = str(status.activity) if row.is_live else "gone"
        mark = {True: "=", False: "≠", None: " "}[row.agrees]
        trouble = row.seen.trouble if not row.is_live else ""
        words = "; ".join(word for word in (_way_to(row, names), trouble or status.waits_for) if word)
        cells = [
            Text(status.name),
            Text(str(status.peer)),
            *([Text(status.device)] if is_wide else []),
            Text(state, "green" if row.is_live and state in ("training", "pending") else ""),
            Text(str(status.version)),
            Text(f"{status.state_digest.hex()[:7]} {mark}", "bold red" if row.agrees is False else ""),
            Text(short(status.tokens_per_s)),
            Text(short(status.up_bytes_per_s)),
            Text(short(status.down_bytes_per_s)),
            Text(ago(row.seen_s_ago)),
            Text(words, "yellow" if trouble or status.waits_for else ""),
        ]
        table.add_row(*cells, style=None if row.is_live else "dim")
    return table


def _rounds_table(rounds: Sequence[RoundSeen], summary: Summary) -> Table:
    names = {row.peer: row.seen.status.name for row in summary.rows}
    table = _table(
        ("ROUND", "right", 6),
        ("TOKENS", "right", 6),
        ("LISTED", "right", 6),
        ("OUT", "right", 3),
        ("TIME", "right", 5),
        ("DIGEST", "left", 9),
        ("LEADER", "left", 10),
        ("WHY", "left", None),
    )
    for one in rounds:
        event = one.event
        is_equal = len(set(one.digests.values())) == 1
        reason = ("minority: " if event.minority else "") + event.reason
        table.add_row(
            Text(str(event.version)),
            Text(short(event.tokens)),
            Text(str(event.num_listed)),
            Text(str(event.num_left_out), "yellow" if event.left_out else ""),
            Text(ago(event.duration_s)),
            Text(f"{event.state_digest.hex()[:7]} {'=' if is_equal else '≠'}", "" if is_equal else "bold red"),
            Text(names.get(event.leader) or str(event.leader)),
            Text(reason, "yellow" if event.minority else ""),
        )
    return table


def _note(now_s: float, at_s: float, text: str, tellers: int) -> Text:
    line = Text(f" {clock(at_s)} {ago(max(0.0, now_s - at_s)):>4} ago ", "dim").append(text, "default")
    if tellers > 1:
        line.append(f" ({tellers} peers say so)", "dim")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def clock(at_s: float) -> str:
    """The local time of day; a time that no clock has is shown as such."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at_s))
    except (OverflowError, OSError, ValueError):
        return "??:??:??"


def plain_note(now_s: float, at_s: float, text: str) -> str:
    """A line of news, for logs and pipes; what is told late says so."""
    late_s = now_s - at_s
    return f"{clock(at_s)} {text}" + (f" ({ago(late_s)} ago)" if late_s > NEWS_S else "")


def plain_line(summary: Summary) -> str:
    """The swarm on one line, for logs and pipes."""
    loss = f"held-out loss {summary.heldout[-1][1]:.4f}" if summary.heldout else "no held-out loss yet"
    return (
        f"{clock(summary.at_s)} version {summary.version}  {short(summary.tokens)} tokens  "
        f"{short(summary.tokens_per_s)} tokens/s  {loss}  peers {summary.num_live} live of {len(summary.rows)}  "
        f"digests {'equal' if summary.digests_equal else 'DIFFER'}"
    )
