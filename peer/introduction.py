"""What the screen says of this peer: what was found at the start, how others join, and later on who can dial it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from peer.address_book import AddressBook, Known
from peer.clock import awake_or_asleep_s
from peer.commands import barnraise_command, peer_command
from peer.entrance import Entrance
from peer.invitation import invitation
from peer.network import Network
from peer.options import PeerOptions
from peer.reachability import Reachability, facts_of
from peer.screen import Screen
from swarm.config import RunConfig
from swarm.identity import PeerId
from swarm.round.participant import Participant

LOOK_EVERY_S: Final = 2.0


class Introduction:
    """Tells people of this peer, and its address book what fresh invites are made of."""

    def __init__(self, screen: Screen, entrance: Entrance, me: PeerId, network: Network, *, local: bool) -> None:
        self.book = AddressBook(entrance.home.book)
        self._screen = screen
        self._entrance = entrance
        self._me = me
        self._network = network
        self._local = local
        self._text: list[tuple[str, Path]] = []
        self._due_s = awake_or_asleep_s()
        self._reachability = Reachability(network.addresses, _port(network.listening), self._due_s)

    def introduce(self, config: RunConfig, device_reason: str, options: PeerOptions) -> None:
        """The first lines. A run on files cannot be joined without them: `options` name ours."""
        self._text = [
            (name, path)
            for name, path in (("data", options.data), ("tokenizer", options.tokenizer))
            if path is not None
        ]
        screen, addresses, home = self._screen, self._network.addresses, self._entrance.home
        screen.say(f"Barnraise: run {config.name} ({self._entrance.run})", style="bold")
        if home.note:
            screen.say(f"  {home.note}", style="yellow")
        screen.fact("peer", self._me.base58)
        screen.fact("home", str(home.path))
        screen.fact("device", device_reason)
        model = config.model
        screen.fact("model", f"{model.family}, {model.num_layers} layers of {model.hidden_size}")
        if not addresses:
            screen.fact(
                "listening", "nowhere: this peer dials out; it can train, and others fetch through those it reaches"
            )
            return
        told = ", ".join(address.split("/p2p/")[0] for address in addresses)
        shows = "for this machine alone" if self._local else "whether others can dial it shows within a minute"
        screen.fact("listening", f"{told} ({shows})")
        self._invite()

    def _invite(self) -> None:
        """How others join, by what is known at the start: whom we have just reached, and what the book remembers."""
        screen, reached, known = self._screen, self._network.transport.known, self.book.known
        at_start = Known(
            addresses=tuple(dict.fromkeys([*map(str, reached.values()), *known.addresses])),
            dialable=known.dialable | frozenset(reached),
            own=self._network.addresses,
        )
        invite, note = invitation(self._entrance.run, self._me, at_start)
        local = ["--local"] if self._local else []
        text = [word for name, path in self._text for word in (f"--{name}", path.name)]
        screen.say("")
        screen.say("To join:" if self._local else "To join this run from another machine or terminal:")
        screen.say(f"  {peer_command('--join', invite.encode(), *text, *local)}")
        if text:
            screen.say("  (with the very same text and tokenizer there)")
        if note and not self._local:
            screen.say(f"  ({note})")
        screen.say("To watch it:")
        screen.say(f"  {barnraise_command('monitor', invite.encode())}")
        screen.say("For a fresh invite at any time:")
        screen.say(f"  {barnraise_command('invite', '--home', self._entrance.home.path)}")
        screen.say("")

    def look(self, participant: Participant) -> None:
        """What has changed since, for the screen and for the book. Called often, in the network's loop."""
        now_s = awake_or_asleep_s()
        if now_s < self._due_s:
            return
        self._due_s = now_s + LOOK_EVERY_S
        addresses, reached = self._network.addresses, self._network.transport.known
        chain, attested = participant.chain, participant.presence.roll.attested
        dialled = [str(reached[peer]) for peer in participant.figures.dialled if peer in reached]
        members = frozenset(peer for peer in chain.roster if chain.is_dialable(peer))
        self.book.see(attested | members, tuple(dialled), addresses)
        if not self._local:
            for line in self._reachability.lines(facts_of(participant, addresses, now_s), now_s):
                self._screen.say(line)


def _port(listening: tuple[str, ...]) -> int | None:
    """The TCP port to be forwarded; None when nothing listens."""
    ports = [
        int(text) for one in listening for kind, text in [one.split("/")[3:5]] if kind == "tcp" and text.isdecimal()
    ]
    return next(iter(ports), None)
