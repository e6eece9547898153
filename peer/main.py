"""What the commands do, with every expected failure as one line and an exit code."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from peer import fault_point
from peer.address_book import AddressBook, Known
from peer.commands import barnraise_command, peer_command
from peer.entrance import complete_manifest, refuse_wrong_text
from peer.home import Home, open_default_home, open_home, refuse_unfit_home, refuse_unwritable_data_folder, safe_name
from peer.invitation import invitation
from peer.options import PeerOptions
from peer.own_addresses import refuse_wrong_addresses
from peer.printing import QueuedLogs
from peer.remembered import recall
from peer.run_file import read_run_file
from peer.screen import Screen, error_line
from peer.stopping import Stopping
from swarm.errors import BarnraiseError, ConfigError, DataError, LocalError, StateError
from swarm.identity import Keypair
from swarm.invite import Invite
from swarm.manifest import Manifest

EXIT_FAILED: Final = 2
LOG_ENV: Final = "BARNRAISE_LOG"  # a level such as DEBUG, for people who look into a problem
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def run_peer(options: PeerOptions) -> int:
    """Runs a peer until it is told to stop; returns the exit code."""
    stopping = Stopping()
    stopping.install()
    try:
        screen = Screen(quiet=options.quiet, json_events=options.json_events)
    except BarnraiseError as error:
        error_line(error)
        return EXIT_FAILED
    try:
        set_up_logs(screen)
        fault_point.arm(os.environ.get(fault_point.FAULT_ENV))
        _check_early(options, screen)
        screen.live("loading torch and hivemind ...")
        from peer.start import Peer

        with stopping.starting():
            reason = Peer(options, screen, stopping).run()
        screen.say(f"left: {reason}; everything is saved")
        return 0
    except LocalError:
        raise  # a bug of ours: the traceback is what helps
    except (BarnraiseError, OSError) as error:
        screen.close()
        error_line(error)
        return EXIT_FAILED
    finally:
        screen.close()


def _check_early(options: PeerOptions, screen: Screen) -> None:
    """What can be told before torch is loaded, which takes seconds. Raises ConfigError, DataError or StateError."""
    if options.join is not None:
        Invite.parse(options.join)
        if options.new or options.config is not None:
            raise ConfigError(
                "--join enters a run that is there, --new and --config start another one: give one of them"
            )
    if options.name is not None:
        safe_name(options.name)
    if options.config is not None:
        read_run_file(options.config)
    if options.home is not None:
        refuse_unfit_home(options.home)
    me = Home(options.home).known_id() if options.home else None
    refuse_wrong_addresses(options.listen, options.announce, me, local=options.local)
    _check_paths(options.data, options.tokenizer)
    refuse_unwritable_data_folder()
    refuse_wrong_text(options, screen)


def _check_paths(data: Path | None, tokenizer: Path | None) -> None:
    for option, path in (("--data", data), ("--tokenizer", tokenizer)):
        if path is not None and not path.exists():
            raise DataError(f"{option} {path}: there is no such file or folder")


def make_run(
    config_path: Path,
    out: Path,
    *,
    home: Path | None,
    data: Path | None,
    tokenizer: Path | None,
    port: int,
    local: bool,
) -> int:
    """Writes a manifest and prints its invite; returns the exit code."""
    screen = Screen(quiet=False, json_events=None)
    try:
        config = read_run_file(config_path)
        if isinstance(config, Manifest):
            raise ConfigError(
                f"{config_path} is a manifest already; start it with: {peer_command('--config', config_path)}"
            )
        _check_paths(data, tokenizer)
        refuse_unwritable_data_folder()
        keypair = Keypair.generate()
        manifest = complete_manifest(config, PeerOptions(data=data, tokenizer=tokenizer), keypair, screen)
        first = open_home(home) if home else open_default_home(manifest.run_id, None)
        try:
            known = first.manifest()
            if known is not None and known.run_id != manifest.run_id:
                raise StateError(f"{first.path} belongs to run {known.run_id}; give the new run another --home")
            first.adopt(keypair)
            first.keep_manifest(manifest)
            port = port or _free_port()
            host = "127.0.0.1" if local else "0.0.0.0"
            first.keep_listen((f"/ip4/{host}/tcp/{port}",))
            recall(first, PeerOptions(data=data, tokenizer=tokenizer, local=local))
            invite, note = invitation(manifest.run_id, first.keypair().peer_id, Known(own=_listening(first)))
            out.write_bytes(manifest.to_bytes())
        finally:
            first.release()
        screen.say(f"manifest  {out} ({len(manifest.to_bytes())} bytes), run {manifest.run_id.hex()}")
        screen.say(f"invite    {invite.encode()}")
        if note and not local:
            screen.say(f"          ({note})")
        options = [*(["--data", data] if data else []), *(["--tokenizer", tokenizer] if tokenizer else [])]
        command = peer_command("--home", first.path, *options, *(["--local"] if local else []))
        screen.say(f"start the first peer:  {command}")
        return 0
    except LocalError:
        raise
    except (BarnraiseError, OSError) as error:
        screen.close()
        error_line(error)
        return EXIT_FAILED
    finally:
        screen.close()


def run_relay_command(path: Path, home: Path | None, listen: str, announce: tuple[str, ...], max_bytes: int) -> int:
    """Runs a relay until it is told to stop; returns the exit code."""
    screen = Screen(quiet=False, json_events=None)
    try:
        set_up_logs(screen)
        manifest = read_run_file(path)
        if not isinstance(manifest, Manifest):
            raise ConfigError(f"{path} is no manifest; make one with: {barnraise_command('new', path)}")
        me = Home(home).known_id() if home else None
        refuse_wrong_addresses((listen,), announce, me, local=False)
        from peer.relay import run_relay

        run_relay(manifest, screen, home=home, listen=listen, announce=announce, max_bytes=max_bytes)
        return 0
    except LocalError:
        raise
    except (BarnraiseError, OSError) as error:
        screen.close()
        error_line(error)
        return EXIT_FAILED
    finally:
        screen.close()


def print_invite(home: Home) -> int:
    """Prints a fresh invite from what that peer's home holds, whether or not the peer runs; returns the exit code."""
    try:
        manifest = home.manifest()
        if manifest is None:
            raise ConfigError(f"{home.path} holds no run; name the --home of a peer or of a monitor")
        known = AddressBook(home.book).known
        if not known.own:  # before the peer has kept it, or by an older release: where it listens
            known = replace(known, own=_listening(home))
        invite, note = invitation(manifest.run_id, home.keypair().peer_id, known)
    except (BarnraiseError, OSError) as error:
        error_line(error)
        return EXIT_FAILED
    if note:
        print(note, file=sys.stderr)
    print(invite.encode())
    return 0


def _listening(home: Home) -> tuple[str, ...]:
    """Where the peer of that home can be dialled when it runs, by what this machine knows of itself."""
    me, found = home.keypair().peer_id.base58, []
    for one in home.listen():
        hosts = _own_hosts() if "/0.0.0.0/" in one else ("",)
        found += [f"{one.replace('/0.0.0.0/', f'/{host}/')}/p2p/{me}" for host in hosts]
    return tuple(found)


def set_up_logs(screen: Screen) -> None:
    """Warnings of all, and more of ours if asked, on standard error; through the printer, as they come from the loop too.

    Raises ConfigError for a level that there is not.
    """
    level = os.environ.get(LOG_ENV) or "WARNING"
    if level.upper() not in LOG_LEVELS:
        raise ConfigError(f"{LOG_ENV} = {level[:40]!r}: one of {', '.join(LOG_LEVELS)}")
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[QueuedLogs(screen.printer)], force=True)
    logging.captureWarnings(True)
    for name in ("peer", "swarm"):
        logging.getLogger(name).setLevel(level.upper())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_hosts() -> tuple[str, ...]:
    """This machine's IPv4 addresses, loopback last."""
    import psutil

    found = [
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]
    return (*found[:7], "127.0.0.1")
