"""What a maintainer sees, as golden text; and that no peer can draw outside its cells."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from coordinator.dashboard import ago, draw, plain_line, plain_note, short, sparkline
from coordinator.summary import Summary, summarize
from coordinator.view import Happened, Seen, SwarmView, Trouble, fold
from swarm.events import Evaluated, PeerJoined, PeerLeft, RoundCommitted
from swarm.identity import PeerId
from swarm.messages import Activity
from tests.unit.fake_swarm import RUN, a_digest, a_status

GOLDEN = Path(__file__).parent.parent / "golden"
PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 10)]
NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def render(summary: Summary, width: int, height: int | None, *, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, height=height or 100, force_terminal=color, color_system="truecolor" if color else None
    )
    console.print(draw(summary, width, height))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def a_round(version: int, **changes: Any) -> RoundCommitted:
    event = RoundCommitted(
        version, a_digest(f"head {version}"), a_digest(f"state {version}"), 98_304, version * 98_304,
        PEERS[version % 3], 0, tuple(PEERS[:3]), (), False, 5.25, "98304 tokens on blobs that all of 3 hold",
    )  # fmt: skip
    return replace(event, **changes)


def a_swarm() -> Summary:
    view = SwarmView(RUN)
    for second in range(30):
        status = a_status(PEERS[0], beat=second + 1, name="ada", tokens_per_s=900.0 + 10 * (second % 7))
        view = fold(view, Seen(status, NOW - 30 + second, True))
    for version in range(8):
        for peer in PEERS[:3]:
            view = fold(view, Happened(peer, NOW - 60 + 5 * version, a_round(version)))
            view = fold(view, Happened(peer, NOW, Evaluated(version, 5.5 - version / 4)))
    view = fold(
        view, Happened(PEERS[0], NOW - 9, a_round(6, head=a_digest("fork"), minority=True, left_out=(PEERS[1],)))
    )
    view = fold(view, Seen(a_status(PEERS[0], beat=99, name="ada"), NOW, True))
    bea = a_status(PEERS[1], name="bea", activity=Activity.PENDING, waits_for="a majority")
    view = fold(view, Seen(bea, NOW, True, through=PEERS[0]))
    view = fold(view, Seen(a_status(PEERS[2], name="cyd", state_digest=a_digest("other")), NOW, True))
    view = fold(view, Seen(a_status(PEERS[3], name="dov", version=5), NOW - 95, True))
    view = fold(view, Trouble(PEERS[3], NOW, "127.0.0.1:4001: Connection refused", False))
    view = fold(view, Seen(a_status(PEERS[4], name="eve"), NOW - 95, True))
    for peer in PEERS[:3]:
        view = fold(view, Happened(peer, NOW - 90, PeerLeft(PEERS[4], "left on purpose")))
    view = fold(view, Happened(PEERS[0], NOW - 200, PeerJoined(PEERS[2], "cyd")))
    return summarize(view, NOW)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_golden_picture(width: int, height: int) -> None:
    """To accept a change that is meant: BARNRAISE_REGENERATE_GOLDEN=1."""
    drawn = render(a_swarm(), width, height)
    path = GOLDEN / f"dashboard_{width}x{height}.txt"
    if os.environ.get("BARNRAISE_REGENERATE_GOLDEN") == "1":
        path.write_text(drawn)
    assert drawn == path.read_text()


@pytest.mark.parametrize("num_peers", [0, 1, 5, 200])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60), (80, 12), (40, 10)])
def test_it_fits_the_terminal(num_peers: int, width: int, height: int) -> None:
    view = SwarmView(RUN)
    for number in range(num_peers):
        peer = PeerId(number.to_bytes(32, "big"))
        view = fold(view, Seen(a_status(peer, name=f"a long name {number}" * 3, waits_for="x" * 300), NOW, True))
        view = fold(view, Happened(peer, NOW + number, PeerJoined(peer, "")))
    for version in range(40):
        view = fold(view, Happened(PEERS[0], NOW, a_round(version)))
    lines = render(summarize(view, NOW), width, height).splitlines()
    assert len(lines) <= max(height, 16)
    assert all(len(line) <= width for line in lines)


def hostile_swarm(text: str) -> Summary:
    view = SwarmView(RUN)
    status = a_status(PEERS[0], name=text[:64], device=text[:64], waits_for=text)
    view = fold(view, Seen(status, NOW, True))
    view = fold(view, Happened(PEERS[0], NOW, a_round(7, reason=text)))
    view = fold(view, Happened(PEERS[0], NOW, PeerLeft(PEERS[1], text)))
    return summarize(fold(view, Trouble(PEERS[0], NOW, text, True)), NOW)


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b[31mred",
        "[bold red]loud[/] [link=http://evil]x[/link]",
        "[/]",
        "[/bold]",
        "\u202egnp.exe",
        "a\nb\rc",
        "\\[x]",
    ],
)
def test_hostile_text_draws_nothing(text: str) -> None:
    drawn = render(hostile_swarm(text), 140, 40, color=True)
    plain = render(hostile_swarm("nothing"), 140, 40, color=True)
    assert set(_codes(drawn)) <= set(_codes(plain)), "remote text brought a colour or a move of its own"
    assert not {"\r", "\u202e", "\x07"} & set(drawn)
    if text.startswith("[bold red]"):
        assert "[bold red]loud[/]" in drawn, "markup is shown as the text that it is"


@given(st.text(max_size=120))
@settings(max_examples=30, deadline=None)
def test_any_text_keeps_the_picture_in_its_width(text: str) -> None:
    from rich.cells import cell_len

    for line in render(hostile_swarm(text), 100, 30).splitlines():
        assert cell_len(line) <= 100


def _codes(drawn: str) -> list[str]:
    import re

    return re.findall(r"\x1b[^m]*m?", drawn)


def test_sparklines() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 10) == "▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0] * 5, 3) == "▁▁▁"
    assert sparkline(list(range(1000)), 4) == "▁▃▆█"


@given(st.floats(0, 1e15))
@settings(deadline=None)
def test_numbers_stay_short(number: float) -> None:
    assert len(short(number)) <= 5
    assert len(ago(number)) <= 4


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (1.5, "1.50"), (950, "950"), (12_345, "12.3k"), (999_960, "1.00M"), (4.56e9, "4.56G")],
)
def test_numbers_are_rounded_as_expected(number: float, text: str) -> None:
    assert short(number) == text


def test_the_plain_line() -> None:
    assert plain_line(a_swarm()) == (
        "22:13:20 version 7  7.00k tokens  3.00k tokens/s  held-out loss 3.2500  peers 3 live of 4  digests DIFFER"
    )


def test_news_that_come_late_say_how_old_they_are() -> None:
    """A peer that joined two minutes ago, and was killed since, was once told as if it came now."""
    assert plain_note(NOW, NOW - 3, "cyd joined") == "22:13:17 cyd joined"
    assert plain_note(NOW, NOW - 120, "cyd joined") == "22:11:20 cyd joined (2m ago)"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Seen(a_status(PEERS[1]), NOW, True), ""),
        (Seen(a_status(PEERS[1]), NOW, True, through=PEERS[0]), "through ada"),
        (Seen(a_status(PEERS[1]), NOW, True, through=PEERS[7]), "through a relay"),
        (Seen(a_status(PEERS[1], beat=9), NOW, False), "behind NAT"),
    ],
    ids=["connected", "over a peer", "over a relay", "only told of"],
)
def test_a_row_says_how_a_peer_is_reached(found: Seen, word: str) -> None:
    view = fold(SwarmView(RUN), Seen(a_status(PEERS[0], name="ada"), NOW, True))
    view = fold(view, Seen(a_status(PEERS[1]), NOW - 60, False))
    view = fold(view, Trouble(PEERS[1], NOW - 50, "timed out", False))
    drawn = render(summarize(fold(view, found), NOW), 140, None)
    (row,) = (line for line in drawn.splitlines() if str(PEERS[1]) in line)
    assert row.split(" 0s")[1].strip() == word
