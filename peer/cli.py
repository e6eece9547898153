"""The command line of contributors: `python run_peer.py` and the `barnraise` command.

Heavy imports wait until a command runs, so that `--help` is quick. Monitors are another process with other libraries:
`barnraise monitor`, `status` and `pull`, and `invite` for a monitor's home, hand over to `python -m coordinator`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer

from peer.commands import is_script
from peer.shadow import check_own_swarm

check_own_swarm()

# \\b keeps the lines of an example apart
_PEER: Final = "python run_peer.py" if is_script() else "barnraise peer"
_PEER_EXAMPLES: Final = f"""\b
Examples:
  {_PEER}                              start a run, or resume the last one
  {_PEER} --join barnraise1-...        join a run by its invite
  {_PEER} --new --config my-run.toml   start a run of your own design
  {_PEER} --local --rounds 5           try it on this machine alone, five rounds"""
_NEW_EXAMPLES: Final = """\b
Examples:
  barnraise new my-run.toml -o run.manifest
  barnraise new pile.toml --data /data/pile --tokenizer gpt-neox.json --port 4001"""
_INVITE_EXAMPLES: Final = """\b
Examples:
  barnraise invite                  of the run used last on this machine
  barnraise invite --home DIR       of a peer's home, or a monitor's"""
_DEMO_EXAMPLES: Final = """\b
Examples:
  barnraise demo                    two minutes of training
  barnraise demo --short            one minute
  barnraise demo --out DIR          its files in DIR, a folder of its own"""
_RELAY_EXAMPLES: Final = """\b
Examples:
  barnraise relay --manifest run.manifest
  barnraise relay --manifest run.manifest --announce /dns4/relay.example/tcp/4001"""

MONITOR_RUN: Final = "run"  # a file in the home of a monitor, and of no peer
_LAST_WORDS_S: Final = 0.5
_MAINTAIN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"barnraise {version('barnraise')}")
        raise typer.Exit


_VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
]


_UploadOption = Annotated[
    float,
    typer.Option(
        metavar="MBIT",
        min=0,
        show_default=False,
        help="What your line can send: newcomers get a share of it, rounds take what they need.",
    ),
]
_DiskOption = Annotated[
    float,
    typer.Option(
        metavar="GB", min=0, show_default=False, help="Room for its home: past it, no more checkpoints are kept."
    ),
]
_MomentsOption = Annotated[
    bool | None,
    typer.Option(
        "--prefer-torch/--prefer-8bit",
        help="fp32 or 8-bit optimizer moments where the run says 8 bits. Default: fp32 on a CPU with memory to spare.",
    ),
]


@app.callback()
def _about(is_version: _VersionOption = False) -> None:
    """Decentralized volunteer training: one consumer GPU each, one language model together."""


def peer(
    join: Annotated[
        str | None, typer.Option("--join", metavar="INVITE", help="Join the run of this invite (barnraise1-...).")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Start a run afresh instead of resuming the last one.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The new run: TOML, or a manifest made by `barnraise new`."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", metavar="DIR", help="State, identity and blobs of this peer. Default: one per run and peer."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ... Default: the first GPU, else the CPU.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="Text of the run: .jsonl (.zst, .gz), .txt, or a folder of them."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="The run's tokenizer.json, where it has one.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What others call this peer. Default: peer-1, peer-2 ...")
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="MULTIADDR", help="Where to listen, e.g. /ip4/0.0.0.0/tcp/4001. Repeatable."),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            "--announce", metavar="MULTIADDR", help="The address others reach you at, behind a forwarded port."
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Loopback only: nobody outside this machine can join.")
    ] = False,
    rounds: Annotated[int | None, typer.Option("--rounds", metavar="N", min=1, help="Leave after version N.")] = None,
    json_events: Annotated[
        Path | None, typer.Option("--json-events", metavar="FILE", help="Append every event as a line of JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    max_upload_mbit: _UploadOption = 0.0,
    max_disk_gb: _DiskOption = 0.0,
    prefer_torch: _MomentsOption = None,
    is_version: _VersionOption = False,
) -> None:
    """Train with one GPU (or CPU) in a swarm of volunteers.

    Without options: start a run on the embedded text and print its invite, or resume the last one.
    """
    from peer.main import run_peer
    from peer.options import PeerOptions

    options = PeerOptions(
        join=join,
        new=new,
        config=config,
        home=home,
        device=device,
        data=data,
        tokenizer=tokenizer,
        name=name,
        listen=tuple(listen or ()),
        announce=tuple(announce or ()),
        local=local,
        rounds=rounds,
        json_events=json_events,
        quiet=quiet,
        max_disk_gb=max_disk_gb,
        max_upload_mbit=max_upload_mbit,
        prefer_torch=prefer_torch,
    )
    _end(run_peer(options))


app.command("peer", epilog=_PEER_EXAMPLES)(peer)


@app.command("new", epilog=_NEW_EXAMPLES)
def new(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help='The run, as TOML; `preset = "tiny"` is enough.')
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write the manifest.")] = Path(
        "run.manifest"
    ),
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="DIR", help="Home of the first peer, whose address the invite holds."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="PATH", help="The run's text.")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", metavar="FILE", help="Its tokenizer.json.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the first peer; 0: any free one.")] = 0,
    local: Annotated[bool, typer.Option("--local", help="Loopback only.")] = False,
) -> None:
    """Make a signed manifest and an invite for a run."""
    from peer.main import make_run

    raise typer.Exit(make_run(config, out, home=home, data=data, tokenizer=tokenizer, port=port, local=local))


@app.command("invite", epilog=_INVITE_EXAMPLES)
def invite(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", metavar="DIR", help="Of a peer, running or not, or of a monitor. Default: the last peer's."
        ),
    ] = None,
) -> None:
    """Print a fresh invite: with members that others could dial lately."""
    from peer.home import Home, last_home

    found = home or last_home()
    if found is not None and (home is None or not (found / MONITOR_RUN).exists()):
        from peer.main import print_invite

        raise typer.Exit(print_invite(Home(found)))
    context.args = [] if home is None else ["--home", str(home)]
    _hand_over(context)


@app.command("demo", epilog=_DEMO_EXAMPLES)
def demo(
    short: Annotated[bool, typer.Option("--short", help="About a minute instead of two.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where logs and the checkpoint go.")] = Path(
        "demo-out"
    ),
    seconds: Annotated[int | None, typer.Option("--seconds", min=20, help="How long to train.")] = None,
) -> None:
    """Raise a swarm here, kill a peer half-way, pull the model.

    Real processes on real text; nothing leaves this machine.
    """
    from peer.demo import run_demo

    raise typer.Exit(run_demo(out, seconds=seconds or (55 if short else 120)))


@app.command("relay", epilog=_RELAY_EXAMPLES)
def relay(
    manifest: Annotated[Path, typer.Option("--manifest", metavar="FILE", help="The run, made by `barnraise new`.")],
    listen: Annotated[str, typer.Option("--listen", metavar="MULTIADDR", help="Where to listen.")] = (
        "/ip4/0.0.0.0/tcp/4001"
    ),
    announce: Annotated[
        list[str] | None, typer.Option("--announce", metavar="MULTIADDR", help="The address others reach it at.")
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Its identity and blobs.")] = None,
    max_disk_gb: Annotated[float, typer.Option("--max-disk-gb", min=0.01, help="Room for blobs.")] = 2.0,
) -> None:
    """Let peers behind NAT meet, from a small public server.

    It forwards for them and holds their contributions.

    It trains nothing and keeps no state; any number of relays may serve a run, and any may go.
    """
    from peer.main import run_relay_command

    _end(run_relay_command(manifest, home, listen, tuple(announce or ()), int(max_disk_gb * 1e9)))


def _end(code: int) -> None:
    """Ends the process now. All is saved and closed; taking the interpreter apart with torch in it takes seconds more."""
    # In a thread: a terminal that is paused would take the last words only when it is let go.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(_LAST_WORDS_S)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()


def _hand_over(context: typer.Context) -> None:
    """Becomes the monitor's process: it must not share one with hivemind."""
    name = context.info_name or "monitor"
    os.execv(sys.executable, [sys.executable, "-m", "coordinator", name, *context.args])


for _name, _help in (
    ("monitor", "Watch a swarm in the terminal and keep its history."),
    ("status", "One look at a swarm."),
    ("pull", "Fetch the newest averaged checkpoint from the peers."),
):
    app.command(_name, context_settings=_MAINTAIN, help=_help, add_help_option=False)(_hand_over)


def barnraise() -> None:
    """The `barnraise` command."""
    from swarm.streams import standard_streams

    with standard_streams():
        app(prog_name="barnraise")


def main() -> None:
    """`python run_peer.py`: the `peer` command by itself."""
    from swarm.streams import standard_streams

    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(epilog=_PEER_EXAMPLES)(peer)
    with standard_streams():
        alone(prog_name=f"python {sys.argv[0]}")
