"""The maintainer's commands: monitor, status, pull, invite. A mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from coordinator.home import Home, open_home
from swarm.errors import BarnraiseError, LocalError
from swarm.streams import NOBODY_READS, standard_streams

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Watch a run and pull its checkpoints. Light: needs neither a GPU nor torch, and nobody depends on it.",
)

_HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Folder for history and key. Default: one a run, in your data folder."),
]
_InviteArgument = Annotated[
    str | None, typer.Argument(metavar="INVITE", help="The run's invite; not needed when the run was watched before.")
]
_InviteOption = Annotated[str | None, typer.Option("--invite", metavar="INVITE", help="The same as INVITE.")]
_OnceOption = Annotated[bool, typer.Option("--once", help="Look once, print, end.")]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; its keys are stable.")]
# \b keeps the lines of an example apart
_MONITOR_EXAMPLES: Final = """\b
Examples:
  barnraise monitor INVITE          watch a run for the first time
  barnraise monitor                 the run watched last, from its address book
  barnraise monitor > run.log       a line every 5 s and the news
  barnraise monitor --json          a JSON object a line, every 5 s"""
_STATUS_EXAMPLES: Final = """\b
Examples:
  barnraise status INVITE
  barnraise status --json | jq '.version, .digests_equal'"""
_PULL_EXAMPLES: Final = """\b
Examples:
  barnraise pull ./model INVITE             the newest checkpoint
  barnraise pull ./at-512 --version 512     a certain one of the run watched last"""
_INVITE_EXAMPLES: Final = """\b
Examples:
  barnraise invite                  of the run used last on this machine
  barnraise invite --home DIR       of a peer's home, or a monitor's"""
_FAILED: Final = 2
_INTERRUPTED: Final = 130


def _fail(error: BaseException) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    raise typer.Exit(_FAILED)


def _open(invite: str | None, home: Path | None) -> Home:
    """The home to work in; opened before the network's modules load (a second), so that a mistake is told at once."""
    try:
        return open_home(invite, home)
    except BarnraiseError as error:
        _fail(error)


def _run(job: Callable[[], Awaitable[None]]) -> bool:
    """Runs a program until it ends or is interrupted (False); what it raises becomes one line.

    It also ends when nobody reads what it writes, silently.
    """
    from coordinator.groups import first_of
    from coordinator.screen import run_until_signal

    try:
        return run_until_signal(job)
    except (BarnraiseError, BrokenPipeError, ExceptionGroup) as error:
        if first_of(BrokenPipeError, error) is not None:
            raise typer.Exit(NOBODY_READS) from None
        found = first_of(BarnraiseError, error)
        if found is None or isinstance(found, LocalError):
            raise
        _fail(found)


@app.command(epilog=_MONITOR_EXAMPLES)
def monitor(
    invite: _InviteArgument = None,
    invite_option: _InviteOption = None,
    home: _HomeOption = None,
    once: _OnceOption = False,
    is_json: _JsonOption = False,
    notes: Annotated[Path | None, typer.Option("--notes", hidden=True)] = None,  # the demo's own lines
) -> None:
    """Show a run as it goes: a dashboard on a terminal, a line every 5 s elsewhere. Ctrl+C ends it and harms nothing."""
    _show(invite or invite_option, home, is_once=once, is_json=is_json, notes=notes)


@app.command(epilog=_STATUS_EXAMPLES)
def status(
    invite: _InviteArgument = None,
    invite_option: _InviteOption = None,
    home: _HomeOption = None,
    once: Annotated[bool, typer.Option("--once", help="Accepted and implied: status always looks once.")] = True,
    is_json: _JsonOption = False,
) -> None:
    """Look at a run once: who is there, where it stands, whether all agree.

    When nobody answers, it shows how it was the last time, says how long ago that was, and ends with exit code 2.
    """
    _show(invite or invite_option, home, is_once=True, is_json=is_json)


@app.command(epilog=_PULL_EXAMPLES)
def pull(
    out_dir: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory, or one with an earlier try.")],
    invite: _InviteArgument = None,
    invite_option: _InviteOption = None,
    home: _HomeOption = None,
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="A kept version. Default: the newest.")
    ] = None,
) -> None:
    """Fetch a checkpoint from the peers, verified chunk by chunk; run it again to go on after a break."""
    opened = _open(invite or invite_option, home)
    from coordinator.screen import open_console, pull_to, pulled_text

    async def job() -> None:
        pulled = await pull_to(opened, out_dir, version, open_console())
        sys.stdout.write(pulled_text(pulled) + "\n")

    if not _run(job):
        sys.stderr.write("stopped; what has come is kept, pull again to go on\n")
        raise typer.Exit(_INTERRUPTED)


@app.command(epilog=_INVITE_EXAMPLES)
def invite(home: _HomeOption = None) -> None:
    """Print a fresh invite, from the peers that answered last. Needs no network."""
    opened = _open(None, home)
    from coordinator.invitation import invitation

    try:
        fresh, note = invitation(opened)
    except BarnraiseError as error:
        _fail(error)
    if note:
        sys.stderr.write(f"{note}\n")
    sys.stdout.write(f"{fresh.encode()}\n")


def _show(invite: str | None, home: Path | None, *, is_once: bool, is_json: bool, notes: Path | None = None) -> None:
    opened = _open(invite, home)
    from coordinator.screen import open_console, show_always, show_once

    console = open_console()

    async def job() -> None:
        if is_once:
            await show_once(opened, console, is_json=is_json)
        else:
            await show_always(opened, console, is_json=is_json, notes=notes)

    _run(job)


def main() -> None:
    """The entry point of `python -m coordinator`."""
    with standard_streams():
        app(prog_name="barnraise")
