"""The NAT lab's cells as data: who lives where, who leads by the order of ids, who leaves, and how.

Hosts are letters: A and B are public, C, D and E homes behind NAT. M is public and no member; it forwards, if a cell has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tests.system.chaos.nat_lab import HOMES

KILL: Final = "kill"  # SIGKILL
GOODBYE: Final = "goodbye"  # SIGINT, as Ctrl+C


@dataclass(frozen=True, slots=True)
class NatCell:
    """`order`: all peers, by rising id. `leaves` departs once all are included, and `joins`, if anybody does, is a member."""

    name: str
    order: str
    leaves: str = ""
    how: str = ""
    joins: str = ""
    with_relay: bool = False
    slow: str = ""  # has an uplink of SLOW_MBIT
    each_alone: bool = False  # nobody who stays can reach another: each goes on by itself

    @property
    def members(self) -> str:
        """Who is there from the beginning."""
        return self.order.replace(self.joins, "")

    @property
    def stay(self) -> str:
        """Who is there in the end."""
        return self.order.replace(self.leaves, "")

    @property
    def natted(self) -> str:
        """Those of them who are behind NAT."""
        return "".join(host for host in self.stay if host in HOMES)


SLOW_MBIT: Final = 5


def _leaving(name: str, order: str, leaves: str, joins: str = "") -> list[NatCell]:
    return [NatCell(f"nat/{name}/{how}", order, leaves, how, joins) for how in (KILL, GOODBYE)]


def _with_relay(*cells: NatCell) -> list[NatCell]:
    return [replace(cell, name=cell.name.replace("nat/", "nat/relay/"), with_relay=True) for cell in cells]


_ALL: Final = (
    NatCell("nat/genesis/public-lowest", "ACD"),
    NatCell("nat/genesis/natted-lowest", "CAD"),
    NatCell("nat/invite/public-lowest", "ACD", joins="D"),
    NatCell("nat/invite/newcomer-lowest", "DAC", joins="D"),
    NatCell("nat/slow-uplink", "ACD", slow="C"),
    *_leaving("public-leader", "ABCD", "A"),
    *_leaving("public-member", "BACD", "A"),
    *_leaving("natted-lowest", "CABD", "C"),
    *_leaving("natted-member", "ACD", "C"),
    *_leaving("after-a-join/leader", "ABCD", "A", joins="B"),
    *_leaving("after-a-join/newcomer-lowest", "BACD", "A", joins="B"),
    *(replace(cell, each_alone=True) for cell in _leaving("only-public/alone", "ACD", "A")),
    *_with_relay(
        NatCell("nat/genesis", "CD"),
        NatCell("nat/invite", "CED", joins="D"),
        *_leaving("only-public", "ACD", "A"),
        *_leaving("natted-leader", "CDE", "C"),
        *_leaving("natted-leads-three", "ACDE", "A"),
    ),
)
_SHORT: Final = ("nat/natted-member/kill", "nat/public-leader/kill")


def nat_cells() -> list[NatCell]:
    """All of them."""
    return list(_ALL)


def short_nat_cells() -> list[NatCell]:
    """A few that stand for the others."""
    return [cell for cell in _ALL if cell.name in _SHORT]
