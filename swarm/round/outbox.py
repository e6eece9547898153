"""The effects of one step, in their order; nothing is ever sent to ourselves."""

from __future__ import annotations

from swarm.events import Event
from swarm.identity import PeerId
from swarm.round.facts import Effect, Happened, Send


class Outbox:
    """Collects effects until the step is over."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._effects: list[Effect] = []

    def add(self, *effects: Effect) -> None:
        self._effects.extend(effects)

    def send(self, to: PeerId, message: object, sealed: bytes | None = None) -> None:
        """Sends a message; `sealed` if somebody else signed it."""
        if to != self._me:
            self._effects.append(Send(to, message, sealed))

    def happened(self, event: Event) -> None:
        self._effects.append(Happened(event))

    def take(self) -> list[Effect]:
        """All effects since the last call."""
        effects, self._effects = self._effects, []
        return effects
