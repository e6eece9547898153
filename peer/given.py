"""What taking part costs, told at the start, and what it gave, told at the end."""

from __future__ import annotations

from typing import Final

from swarm.allreduce.codec import make_codec
from swarm.chain import ChainState
from swarm.config import RunConfig
from swarm.identity import PeerId
from swarm.words import counted

_SAMPLE: Final = 1 << 16  # elements that stand for all: what a codec makes of so many


def round_cost(numel: int, config: RunConfig) -> str:
    """How large the model is, and what a round sends and fetches."""
    import torch

    sample = min(numel, _SAMPLE)
    num_bytes = len(make_codec(config.codec).encode(torch.zeros(sample))) / sample * numel
    size = f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"
    return f"{numel:,}; each round you send {size} and fetch {size} from each other member"


def given(me: PeerId, before: ChainState, now: ChainState, seconds: float, traffic: tuple[int, int]) -> str:
    """What this peer added to the run from one state of its chain to another. `traffic`: bytes sent and received."""
    (old_number, old_tokens), (number, tokens) = _listed(me, before), _listed(me, now)
    sent, received = (f"{num_bytes / 1e6:,.1f} MB" for num_bytes in traffic)
    share = f", {100 * tokens / now.tokens:.1f} % of the run's" if tokens and now.tokens else ""
    return (
        f"you gave {counted(max(0, tokens - old_tokens), 'token')} in {counted(max(0, number - old_number), 'contribution')}"
        f" over {_span(seconds)} ({counted(tokens, 'token')} in all{share}); sent {sent}, received {received}"
    )


def _listed(me: PeerId, chain: ChainState) -> tuple[int, int]:
    """Contributions of that author's that a chain lists, and their tokens."""
    for one in chain.listed:
        if one.author == me:
            return one.highest - len(one.holes), one.tokens
    return 0, 0


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return counted(round(seconds), "second")
    return counted(minutes, "minute") if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
