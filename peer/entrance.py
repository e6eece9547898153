"""How a peer comes to its run: by an invite, by what a home holds, or by starting a new one.

torch is loaded only once a new run's text is known to be fit: a mistake in it should not cost seconds of waiting.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from peer.address_book import AddressBook
from peer.data.windows import Say, describe_data, refuse_other_text, say_nothing
from peer.home import Home, HomeInUse, cache_folder, last_home, open_default_home, open_home
from peer.options import PeerOptions
from peer.run_file import read_run_file
from peer.screen import Screen
from swarm.address import worth_dialling
from swarm.config import DataConfig, RunConfig
from swarm.digest import Digest
from swarm.errors import StateError
from swarm.identity import Keypair
from swarm.invite import Invite
from swarm.manifest import Manifest, sign_manifest
from swarm.presets import preset_config


@dataclass(frozen=True, slots=True)
class Entrance:
    """How this peer comes to its run."""

    home: Home
    run: Digest
    manifest: Manifest | None  # None: to be fetched from the swarm
    bootstrap: tuple[str, ...]
    is_new: bool  # a run that this peer starts


def complete_manifest(config: RunConfig, options: PeerOptions, keypair: Keypair, screen: Screen) -> Manifest:
    """A signed manifest: what the config leaves open (text, version 0) is filled in from this machine."""
    screen.say("reading the text ...")
    data = describe_text(config, options, screen, lambda line: screen.fact("", line))

    from peer.model import genesis_digest, initial_parameters, layout_of, meta_model  # torch

    layout = layout_of(meta_model(config.model))
    screen.say(f"making version 0: {layout.numel:,} parameters ...")
    parameters_N = initial_parameters(config.model, config.seed, layout)
    whole = config.model_copy(update={"data": data, "genesis_digest": genesis_digest(parameters_N).hex()})
    return sign_manifest(whole, [keypair])


def describe_text(config: RunConfig, options: PeerOptions, screen: Screen, say: Say) -> DataConfig:
    """The data section of a new run's manifest; what the text holds goes to `say`. Raises DataError."""

    def progress(fraction: float, what: str) -> None:
        screen.live(f"{what}: {100 * fraction:.0f} %")

    vocab_size = config.model.vocab_size
    return describe_data(
        config.data, options.data, options.tokenizer, cache_folder(), progress, say, vocab_size=vocab_size
    )


def refuse_wrong_text(options: PeerOptions, screen: Screen) -> None:
    """Raises DataError for a text or tokenizer that is not the run's, or fit for none; StateError for a damaged home.

    A new run's text is read for it, and is in the cache when the run is made. Of a run that is joined, nothing is known yet.
    """
    if options.data is None and options.tokenizer is None:
        return
    home = None if options.new or options.join else options.home or last_home()
    manifest = Home(home).manifest() if home is not None else None
    if options.config is not None:
        found = read_run_file(options.config)
        if isinstance(found, RunConfig):
            describe_text(found, options, screen, say_nothing)
            return
        manifest = found
    refuse_other_text(manifest.config if manifest else None, options.data, options.tokenizer, cache_folder())


def read_config(path: Path | None) -> RunConfig | Manifest:
    """A run's config from TOML, a finished manifest, or, without a path, what suits this machine."""
    if path is None:
        import torch

        return preset_config("small" if torch.cuda.is_available() else "tiny")
    return read_run_file(path)


def enter(options: PeerOptions, screen: Screen) -> Entrance:
    """Finds the run and the home; raises a UserError that says what to do."""
    if options.join is not None:
        return _enter_by_invite(Invite.parse(options.join), options)
    resumes = not options.new and options.config is None
    if resumes and options.home is not None and Home(options.home).manifest() is not None:
        return _resume(open_home(options.home))
    if resumes and options.home is None and (last := last_home()) is not None:
        return _resume_last(last, options)
    found = read_config(options.config)
    if isinstance(found, Manifest):
        manifest, keypair = found, None
    else:
        if not found.seed and (options.new or options.config is None):
            # Nobody asked for this very version 0. With a seed of its own the run is another one than all that were
            # started from the same config, here or elsewhere: its id is the digest of its config.
            found = found.model_copy(update={"seed": secrets.randbits(63)})
        keypair = Keypair.generate()
        manifest = complete_manifest(found, options, keypair, screen)
    home = open_home(options.home) if options.home else open_default_home(manifest.run_id, options.name)
    try:
        known = home.manifest()
        if known is not None and known.run_id != manifest.run_id:
            raise StateError(
                f"{home.path} belongs to run {known.run_id}; leave out --new and --config to resume it, "
                "or give the new run another --home"
            )
        if known is not None and options.new:
            raise StateError(
                f"{home.path} has this very run already; leave out --new to resume it, or give the config another seed"
            )
        if keypair is not None:
            home.adopt(keypair)  # who signed a new manifest is its first peer
        home.keep_manifest(manifest)
    except BaseException:
        home.release()
        raise
    return Entrance(
        home, manifest.run_id, manifest, worth_dialling(AddressBook(home.book).addresses()), is_new=known is None
    )


def _resume(home: Home) -> Entrance:
    try:
        manifest = home.manifest()
        assert manifest is not None
        known = worth_dialling(AddressBook(home.book).addresses())
        return Entrance(home, manifest.run_id, manifest, known, is_new=False)
    except BaseException:
        home.release()
        raise


def _resume_last(path: Path, options: PeerOptions) -> Entrance:
    """The home used last; while another process uses it, the next free one of the same run, which joins that process."""
    try:
        return _resume(open_home(path))
    except HomeInUse:
        running = Home(path)
    manifest = running.manifest()
    assert manifest is not None
    home = open_default_home(manifest.run_id, options.name)
    home.note = f"{path.name} is running already: this one is {home.path.name}, at home in {home.path}"
    known = (*running.own_addresses(), *worth_dialling(AddressBook(home.book).addresses()))
    return Entrance(home, manifest.run_id, manifest, tuple(dict.fromkeys(known)), is_new=False)


def _enter_by_invite(invite: Invite, options: PeerOptions) -> Entrance:
    home = open_home(options.home) if options.home else open_default_home(invite.run, options.name)
    try:
        manifest = home.manifest()
        if manifest is not None and manifest.run_id != invite.run:
            raise StateError(
                f"{home.path} belongs to run {manifest.run_id}, the invite to run {invite.run}; use another --home"
            )
    except BaseException:
        home.release()
        raise
    known = worth_dialling([*invite.addresses, *AddressBook(home.book).addresses()])
    return Entrance(home, invite.run, manifest, known, is_new=False)
