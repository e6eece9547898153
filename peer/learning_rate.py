"""The inner learning rate as a function of the swarm's tokens: the same on every peer, with no state of its own.

After a fork or an undo the tokens at the head change and the learning rate simply follows them.
"""

from __future__ import annotations

import math

from swarm.config import InnerConfig


def swarm_tokens_now(tokens_at_head: int, own_since_cut: int, num_entries_last_commit: int) -> int:
    """Returns an estimate of the tokens that the swarm has trained on by now.

    The head tells what was committed. Since then the others have worked at about this peer's pace, so its own tokens count
    once for each of the last commit's entries (once if there was none). `own_since_cut` includes the inner step that is
    about to be done: the tokens at the end of a step decide its learning rate, so that the first step of a warm-up is
    small and not zero.
    """
    return tokens_at_head + own_since_cut * max(num_entries_last_commit, 1)


def learning_rate(config: InnerConfig, swarm_tokens: int) -> float:
    """Returns the learning rate at so many tokens of the swarm.

    A straight line from 0 to `learning_rate` at `warmup_tokens`, half a cosine down to `final_learning_rate` at
    `decay_tokens`, constant from there on. A warm-up that is longer than the decay is followed by the constant part.
    """
    peak, final = config.learning_rate, config.final_learning_rate
    if swarm_tokens < config.warmup_tokens:
        return peak * swarm_tokens / config.warmup_tokens
    if swarm_tokens >= config.decay_tokens:
        return final
    progress = (swarm_tokens - config.warmup_tokens) / (config.decay_tokens - config.warmup_tokens)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
