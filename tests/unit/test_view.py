"""The view: a pure fold in which no single peer can speak for the swarm and no text can touch the terminal."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.clean import clean
from coordinator.summary import Summary, as_json, summarize
from coordinator.view import (
    LIVE_HEARSAY_S,
    LIVE_S,
    MAX_NOTES,
    MAX_ROUNDS,
    MAX_TELLERS,
    Happened,
    Seen,
    SwarmView,
    Trouble,
    fold,
)
from swarm.digest import Digest
from swarm.events import Evaluated, Event, LossJumped, PeerJoined, PeerLeft, RoundCommitted
from swarm.identity import PeerId
from swarm.messages import Activity, PeerStatus
from tests.unit.fake_swarm import RUN, a_digest, a_status

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 9)]
NOW = 1_000_000.0


def view_of(*items: Any) -> SwarmView:
    view = SwarmView(RUN)
    for item in items:
        view = fold(view, item)
    return view


def seen(peer: PeerId, at_s: float = NOW, direct: bool = True, **changes: Any) -> Seen:
    return Seen(a_status(peer, **changes), at_s, direct)


def summary_of(*items: Any, now_s: float = NOW) -> Summary:
    return summarize(view_of(*items), now_s)


def a_round(version: int, source: PeerId = PEERS[0], digest: str | None = None, **changes: Any) -> Happened:
    event = RoundCommitted(
        version, a_digest(f"head {version}"), a_digest(digest or f"state {version}"), 1000, version * 1000,
        PEERS[0], 0, tuple(PEERS[:3]), (), False, 5.0, "all of 3 members",
    )  # fmt: skip
    return Happened(source, NOW, replace(event, **changes))


def test_totals_are_those_of_live_peers() -> None:
    found = summary_of(
        seen(PEERS[0]),
        seen(PEERS[1]),
        seen(PEERS[2], at_s=NOW - LIVE_S - 0.1),
        seen(PEERS[3], activity=Activity.LEAVING),
    )
    assert (found.version, found.tokens, found.tokens_per_s, found.num_live) == (7, 7000, 2000.0, 2)
    assert [row.is_live for row in found.rows] == [True, True, False], "who said goodbye is no row"


def test_nobody_invents_tokens_a_second() -> None:
    """Names that contributed nothing were summed, and one claim of 1e15 ruined the graph."""
    rounds = [a_round(version, source) for version in (5, 6, 7) for source in PEERS[:2]]  # 200 tokens/s
    honest = [seen(peer, tokens_per_s=100.0) for peer in PEERS[:3]]
    ghosts = [seen(peer, tokens_per_s=1e15) for peer in PEERS[3:]]
    found = summary_of(*rounds, *honest, *ghosts)
    assert found.tokens_per_s == 300.0
    later = [replace(one, at_s=NOW + 2) for one in honest]
    assert summary_of(*rounds, *honest, *ghosts, *later).throughput[-1] == (NOW + 2, 300.0)
    boaster = seen(PEERS[0], tokens_per_s=1e15)
    assert summary_of(*rounds, *honest[1:], boaster).tokens_per_s == 1600.0, "eight times what was committed"
    invented = [a_round(8, PEERS[4], listed=(PEERS[4],), tokens=1 << 60)]
    assert summary_of(*rounds, *invented, *honest, *ghosts).tokens_per_s == 300.0


def test_one_peer_cannot_invent_a_version_a_loss_or_a_round_for_all() -> None:
    liar = seen(PEERS[3], version=10**12, heldout_version=10**12, heldout_loss=0.001, tokens=10**15)
    found = summary_of(
        *(seen(peer) for peer in PEERS[:3]), liar, seen(PEERS[4], heldout_loss=0.0), a_round(7), a_round(10**12)
    )
    assert (found.version, found.tokens) == (7, 7000)
    assert found.heldout == ((7, 3.25),)
    assert [one.event.version for one in found.rounds] == [7]


def test_a_joining_peer_does_not_drag_the_version_down() -> None:
    joining = [seen(peer, version=0, activity=Activity.SYNCING) for peer in PEERS[1:4]]
    assert summary_of(seen(PEERS[0]), *joining).version == 7


def test_the_newest_beat_wins_and_an_answer_is_a_sign_of_life() -> None:
    view = view_of(seen(PEERS[0], beat=5, version=9), seen(PEERS[0], at_s=NOW + 1, beat=4, version=8))
    assert view.peers[PEERS[0]].status.version == 9 and view.peers[PEERS[0]].seen_at_s == NOW
    view = fold(view, seen(PEERS[0], at_s=NOW + 2, beat=5, version=9))
    assert view.peers[PEERS[0]].seen_at_s == NOW + 2
    view = fold(view, seen(PEERS[0], at_s=NOW + 3, beat=5, version=9, direct=False))
    assert view.peers[PEERS[0]].seen_at_s == NOW + 2, "hearsay of an old beat is no sign of life"


def test_hearsay_of_a_peer_that_does_not_answer_us_is_no_sign_of_life_until_it_beats_again() -> None:
    told = view_of(seen(PEERS[0], beat=5, direct=False))
    assert summarize(told, NOW).num_live == 1
    silent = fold(told, Trouble(PEERS[0], NOW + 1, "Connection refused", False))
    assert summarize(silent, NOW + 1).num_live == 0
    vouched = fold(silent, seen(PEERS[0], NOW + 3, beat=6, direct=False))
    for _ in range(3):  # and stays alive through further vain attempts of ours
        vouched = fold(vouched, Trouble(PEERS[0], NOW + 4, "Connection refused", False))
        assert summarize(vouched, NOW + 4).num_live == 1
    assert summarize(vouched, NOW + 60).num_live == 0


def test_the_last_words_of_a_killed_peer_do_not_keep_it_alive() -> None:
    view = view_of(seen(PEERS[0], beat=5), Trouble(PEERS[0], NOW + 1, "Connection refused", False))
    view = fold(view, seen(PEERS[0], NOW + 2, beat=6, version=8, direct=False))
    assert view.peers[PEERS[0]].status.version == 8
    assert summarize(view, NOW + LIVE_S + 0.1).num_live == 0


def test_who_said_goodbye_is_out_of_the_table_at_once_and_who_fell_silent_is_not() -> None:
    left = Happened(PEERS[0], NOW + 1, PeerLeft(PEERS[1], "left on purpose"))
    view = view_of(seen(PEERS[0]), seen(PEERS[1], beat=5), seen(PEERS[2], NOW - 60), left)
    assert [row.peer for row in summarize(view, NOW + 1).rows] == [PEERS[0], PEERS[2]]
    late = fold(view, seen(PEERS[1], NOW + 2, direct=False, beat=6))
    assert summarize(late, NOW + 2).num_live == 1, "its words of before the goodbye, passed on late"


@pytest.mark.parametrize(
    "sign",
    [
        seen(PEERS[1], NOW + 2, beat=6),
        seen(PEERS[1], NOW + 2, direct=False, beat=6, incarnation=2),
        seen(PEERS[1], NOW + 2 + LIVE_HEARSAY_S, direct=False, beat=6),
    ],
    ids=["it answers", "it was started again", "it says so much later"],
)
def test_who_is_there_after_all_comes_back_into_the_table(sign: Seen) -> None:
    """Whoever tells of a goodbye may lie, or tell late of one long ago."""
    left = Happened(PEERS[0], NOW + 1, PeerLeft(PEERS[1], "left on purpose"))
    view = view_of(seen(PEERS[1], beat=5), left, sign)
    assert summarize(view, sign.at_s).num_live == 1


def test_an_old_goodbye_takes_nobody_out_of_the_table() -> None:
    old = Happened(PEERS[0], NOW - 60, PeerLeft(PEERS[1], "left on purpose"))
    assert summary_of(seen(PEERS[1]), old).num_live == 1


def test_a_peer_behind_nat_counts_as_any_other_and_is_named_with_its_way() -> None:
    view = view_of(seen(PEERS[0]), replace(seen(PEERS[1], beat=5), through=PEERS[0]))
    later = NOW + LIVE_HEARSAY_S  # it is asked more rarely
    found = summarize(fold(view, seen(PEERS[0], later, beat=2, dialled=(PEERS[2], PEERS[0]))), later)
    assert (found.num_live, found.tokens_per_s) == (2, 2000.0)
    rows = as_json(found)["peers"]
    assert [(row["dialable"], row["through"]) for row in rows] == [(True, None), (False, PEERS[0].base58)]
    silent = fold(view, Trouble(PEERS[1], NOW + 1, "not connected here", False))
    assert not silent.peers[PEERS[1]].is_live(NOW + LIVE_S + 0.1), "its third has lost it"
    direct = fold(view, seen(PEERS[1], NOW + 1, beat=6))
    assert direct.peers[PEERS[1]].through is None


def test_whom_a_live_peer_has_dialled_is_dialable() -> None:
    view = view_of(
        seen(PEERS[0], dialled=(PEERS[0], PEERS[1])),
        seen(PEERS[1], direct=False),
        seen(PEERS[2], NOW - 60, dialled=(PEERS[3],)),
        seen(PEERS[3], direct=False),
    )
    assert {row.peer: row.is_dialable for row in summarize(view, NOW).rows} == {
        PEERS[0]: True,
        PEERS[1]: True,
        PEERS[2]: True,
        PEERS[3]: False,
    }


def test_late_hearsay_does_not_make_a_peer_older_than_it_was_seen() -> None:
    view = view_of(seen(PEERS[0], NOW, direct=False, beat=5), seen(PEERS[0], NOW - 9, direct=False, beat=6))
    assert view.peers[PEERS[0]].seen_at_s == NOW


def test_digests_are_compared_at_equal_heads_and_a_fork_is_no_difference() -> None:
    fork = seen(PEERS[1], head=a_digest("other head"), state_digest=a_digest("other state"))
    assert summary_of(seen(PEERS[0]), fork).digests_equal
    wrong = seen(PEERS[2], state_digest=a_digest("bit flip"))
    found = summary_of(seen(PEERS[0]), seen(PEERS[1]), wrong)
    assert not found.digests_equal
    assert {row.peer: row.agrees for row in found.rows} == {PEERS[0]: True, PEERS[1]: True, PEERS[2]: False}


def test_a_round_told_by_several_is_one_round() -> None:
    found = summary_of(seen(PEERS[0]), *(a_round(7, source) for source in PEERS[:3]), a_round(6))
    assert [one.event.version for one in found.rounds] == [6, 7]
    assert len(found.rounds[1].digests) == 3 and found.digests_equal
    assert not summary_of(a_round(7), a_round(7, PEERS[1], digest="another")).digests_equal


def test_invented_rounds_push_out_only_each_other() -> None:
    told = [a_round(version, source) for version in range(1, 20) for source in PEERS[:2]]
    flood = [a_round(1000 + number, PEERS[5]) for number in range(3 * MAX_ROUNDS)]
    view = view_of(*told, *flood)
    assert len(view.rounds) == MAX_ROUNDS
    assert {one.event.version for one in view.rounds.values() if len(one.digests) > 1} == set(range(1, 20))


def test_heldout_losses_come_from_statuses_and_events() -> None:
    found = summary_of(
        seen(PEERS[0], heldout_loss=3.0),
        Happened(PEERS[1], NOW, Evaluated(7, 3.2)),
        Happened(PEERS[2], NOW, Evaluated(6, 4.0)),
        Happened(PEERS[3], NOW, Evaluated(7, 99.0)),
    )
    assert found.heldout == ((6, 4.0), (7, 3.2))


def test_the_same_news_from_several_peers_is_one_line() -> None:
    news = [Happened(source, NOW + number, PeerLeft(PEERS[5], "Ctrl+C")) for number, source in enumerate(PEERS[:3])]
    later = Happened(PEERS[0], NOW + 500, PeerLeft(PEERS[5], "Ctrl+C"))
    found = summary_of(*news, later)
    assert [tellers for _, _, tellers in found.notes] == [3, 1]
    assert len(
        view_of(*(Happened(PEERS[0], NOW + n, PeerJoined(PEERS[1], "")) for n in range(0, 99_999, 99))).notes
    ) == (MAX_NOTES)


def test_a_jump_of_the_loss_is_news() -> None:
    jumps = [Happened(source, NOW, LossJumped(7, 7.3564, 3.3701)) for source in PEERS[:2]]
    assert [(text, tellers) for _, text, tellers in summary_of(*jumps).notes] == [
        ("held-out loss jumped to 7.356 at version 7, from 3.370 before", 2)
    ]


def test_trouble_is_shown_and_bad_bytes_are_counted() -> None:
    view = view_of(seen(PEERS[0]), Trouble(PEERS[0], NOW, "not msgpack", True), Trouble(PEERS[0], NOW, "silent", False))
    assert (view.peers[PEERS[0]].num_bad, view.peers[PEERS[0]].trouble) == (1, "silent")
    assert [note.text for note in view.notes] == [f"ada ({PEERS[0]}) sent wrong bytes: not msgpack"]
    assert fold(view, seen(PEERS[0], NOW + 1, beat=2)).peers[PEERS[0]].trouble == ""


def test_an_empty_swarm_has_a_summary() -> None:
    found = as_json(summary_of())
    assert (found["version"], found["heldout_loss"], found["peers"], found["digests_equal"]) == (0, None, [], True)


KEYS = """run at_unix_s version head tokens tokens_per_s heldout_loss heldout_version num_live num_peers digests_equal
    peers rounds heldout events"""
PEER_KEYS = """id name device activity live version head state_digest agrees tokens_per_s up_bytes down_bytes up_bytes_per_s
    down_bytes_per_s train_loss heldout_loss checkpoint_version seen_s_ago waits_for trouble num_bad addresses time dialable
    through"""
ROUND_KEYS = """version head tokens tokens_in_all listed left_out num_listed num_left_out duration_s minority leader
    reason state_digest num_tellers digests_equal"""


def test_the_keys_of_the_json_are_an_interface() -> None:
    found = as_json(summary_of(seen(PEERS[0]), a_round(7)))
    assert list(found) == KEYS.split()
    assert list(found["peers"][0]) == PEER_KEYS.split()
    assert list(found["rounds"][0]) == ROUND_KEYS.split()


HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07name",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "a\rb\nc\td",
    "\x9b2Jx",
    "evil\u202etxt.exe",
    "zero\u200bwidth",
    "Z\u0335\u0336\u0337algo" * 20,
    "\x00\x7f\x80",
    "[bold red]not markup[/]",
    "\ud800",
]


def is_harmless(text: str) -> bool:
    kinds = {unicodedata.category(letter) for letter in text}
    return not kinds & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Mn", "Me"} and "  " not in text


@given(
    st.one_of(st.text(), st.sampled_from(HOSTILE), st.lists(st.sampled_from(HOSTILE)).map("".join)), st.integers(1, 60)
)
@settings(deadline=None)
def test_cleaned_text_is_one_harmless_line(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert is_harmless(cleaned)


def test_cleaning_leaves_no_litter_and_keeps_words() -> None:
    assert clean("\x1b[31;1mred\x1b[0m") == "red"
    assert clean("\x1b]0;title\x07name") == "name"
    assert clean("two  words\nand more") == "two words and more"
    assert clean("Ada's é 显卡 RTX™") == "Ada's é 显卡 RTX™"
    assert clean("x" * 50, 10) == "x" * 9 + "…"


texts = st.one_of(st.text(max_size=60), st.sampled_from(HOSTILE)).filter(lambda text: len(text) <= 64)


@given(name=texts, device=texts, reason=texts, how=texts)
@settings(deadline=None, max_examples=50)
def test_no_field_brings_hostile_text_into_the_view(name: str, device: str, reason: str, how: str) -> None:
    status: PeerStatus = a_status(PEERS[0], name=name, device=device, waits_for=reason, addresses=(reason,))
    events: list[Event] = [PeerLeft(PEERS[0], reason), a_round(7).event]
    items: list[Any] = [Seen(status, NOW, True), *(Happened(PEERS[0], NOW, event) for event in events)]
    items += [a_round(6, reason=reason), Trouble(PEERS[0], NOW, how, True)]

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for one in value.values() for text in strings(one)]
        if isinstance(value, list):
            return [text for one in value for text in strings(one)]
        return [value] if isinstance(value, str) else []

    for text in strings(as_json(summary_of(*items))):
        assert is_harmless(text)


def test_folding_does_not_change_what_was() -> None:
    before = view_of(seen(PEERS[0]), a_round(7))
    again = view_of(seen(PEERS[0]), a_round(7))
    fold(before, seen(PEERS[1]))
    fold(before, a_round(7, PEERS[2]))
    assert before == again


def test_digest_is_hashable_key() -> None:
    assert Digest(a_digest("head 7").raw) in view_of(a_round(7)).rounds


def test_nothing_in_the_view_grows_with_the_ids_that_were_ever_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.view.MAX_PEERS", 300)
    view, ids = SwarmView(RUN), [PeerId(number.to_bytes(32, "big")) for number in range(1, 400)]
    for number, peer in enumerate(ids):
        view = fold(view, seen(peer, NOW + number, heldout_loss=2.0, train_loss=3.0, version=7, heldout_version=7))
    for peer in ids[: MAX_TELLERS + 50]:
        view = fold(view, a_round(7, peer))
        view = fold(view, Happened(peer, NOW, PeerLeft(PEERS[0], "left on purpose")))
    assert len(view.peers) == 300 and ids[0] not in view.peers
    (one_round,), (note,) = view.rounds.values(), view.notes
    tellers = (view.heldout[7], view.train[7], one_round.digests, note.tellers)
    assert [len(those) for those in tellers] == [MAX_TELLERS] * 4
