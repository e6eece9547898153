"""What a merge does to held-out loss: a small version of `benchmarks/partition.py`; its figures are in docs/decisions.md."""

from __future__ import annotations

from benchmarks.partition import ROUNDS_AFTER, Experiment, Setting, Text

SETTING = Setting(rounds_before=8, heldout=2048)
ROUNDS = 5


def test_a_merge_is_as_good_as_never_having_split() -> None:
    (found,) = Experiment(Text.embedded(SETTING.heldout), SETTING, seed=1).run([ROUNDS])
    merged, dropped, handed_in = (found.after[way] for way in ("merge", "drop", "contribution"))
    print(f"\n{found}")
    assert merged[0] < min(found.winners, found.losers), "not better than either side was"
    assert abs(merged[0] / found.never[0] - 1) < 0.01, "just after healing"
    assert abs(merged[1] / found.never[1] - 1) < 0.01, f"{ROUNDS_AFTER} rounds later"
    assert merged[0] < dropped[0] == found.winners and merged[1] < dropped[1]
    assert handed_in[0] > found.winners, "through the outer optimizer again it does harm: why merges go past it"
