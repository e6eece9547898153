"""A loss that jumped, by hand: against the mean of the five versions before it, each version once."""

from __future__ import annotations

import pytest

from peer.loss_watch import JUMP, MEAN_OF, LossWatch
from swarm.events import LossJumped


def test_a_loss_far_above_the_last_five_is_a_jump() -> None:
    watch = LossWatch()
    assert [watch.learn(version, 9.0 - version) for version in range(1, 8)] == [None] * 7
    assert watch.learn(8, 4.0 + JUMP) is None  # 6, 5, 4, 3, 2: 4 on average
    assert watch.learn(9, 3.7 + 2 * JUMP) == LossJumped(9, 3.7 + 2 * JUMP, pytest.approx((5 + 4 + 3 + 2 + 4.1) / 5))


def test_the_first_loss_of_all_is_no_jump_and_the_second_may_be_one() -> None:
    watch = LossWatch()
    assert watch.learn(3, 7.0) is None
    assert watch.learn(5, 7.5) == LossJumped(5, 7.5, 7.0)


def test_a_version_is_judged_once_whoever_tells_of_it() -> None:
    watch = LossWatch()
    watch.learn(1, 3.0)
    assert watch.learn(2, 4.0) is not None
    assert watch.learn(2, 4.0) is None and watch.learn(2, 9.0) is None
    assert watch.learn(1, 9.0) is None


def test_a_loss_is_compared_with_earlier_versions_alone() -> None:
    """Told late: what came after it says nothing of it."""
    watch = LossWatch()
    watch.learn(1, 5.0)
    watch.learn(9, 2.0)
    assert watch.learn(4, 4.9) is None
    assert watch.learn(5, 5.5) == LossJumped(5, 5.5, pytest.approx(4.95))


def test_no_more_losses_are_kept_than_are_needed() -> None:
    watch = LossWatch()
    for version in range(1000):
        watch.learn(version, 1.0)
    assert MEAN_OF <= len(watch._known) <= 32
