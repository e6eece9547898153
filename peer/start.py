"""From options to a running peer: home, network, manifest, text, model, state, node, trainer; and the way back down.

The order is chosen so that the network is up while text is read and the model is built, and so that each failure has one
line and leaves nothing running.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from peer.address_book import AddressBook
from peer.beginning import begin
from peer.blob_store import BlobStore
from peer.checkpoints import Checkpoints
from peer.clock import awake_or_asleep_s
from peer.data.background import BackgroundWindows
from peer.data.embedded import embedded_path
from peer.data.tokenizer import read_tokenizer
from peer.data.windows import Windows, open_windows
from peer.device import choose_device, describe_device
from peer.dial_probe import answers
from peer.disk import room_left
from peer.entrance import Entrance, enter
from peer.fetch import Asker, Fetcher
from peer.first_words import fetch_from_known, fetch_manifest, fetch_state
from peer.forwarding import Forwarding
from peer.given import given, round_cost
from peer.handoff import Handoff
from peer.home import cache_folder, safe_name
from peer.inner import make_inner_optimizer
from peer.introduction import Introduction
from peer.model import build_model, layout_of
from peer.moments import choose_optimizer, saved_kind
from peer.network import Network, NetworkConfig
from peer.network_thread import NetworkThread
from peer.node import Node
from peer.node_parts import NodeParts
from peer.options import PeerOptions
from peer.own_addresses import announced
from peer.pacing import Pacer
from peer.reach import Reach
from peer.remembered import recall
from peer.replica import Replica
from peer.routes import Routes
from peer.saved import Generations
from peer.screen import Screen
from peer.serve import Server
from peer.step import InnerTrainer, Precision, choose_micro_batch
from peer.stopping import Stopping
from peer.tokenizer_file import TokenizerFile, byte_tokenizer_file, trained_tokenizer_file
from peer.trainer import Trainer
from swarm.address import parse_address
from swarm.allreduce.codec import make_codec
from swarm.allreduce.probe import run_probe
from swarm.allreduce.shared import RunMath, check_contribution
from swarm.chain import Entry
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import BarnraiseError, StateError
from swarm.events import Event, PeerStarted
from swarm.identity import Keypair
from swarm.messages import Contribution, record_digest, seal_message
from swarm.pace import Upload
from swarm.round.commits import Seals
from swarm.round.facts import HeadReached
from swarm.round.own import Self, beat_of
from swarm.round.participant import Participant
from swarm.schema import MAX_NAME_BYTES, line
from swarm.words import counted

SWITCH_INTERVAL_S: Final = (
    0.0002  # the network thread costs the trainer 2 % instead of 20 % (measured, docs/decisions.md)
)
LINGER_S: Final = 10.0  # after the last version a peer serves so long for those that have not reached it


class Peer:
    """A peer in the making and at work. `run` returns why it ended."""

    def __init__(self, options: PeerOptions, screen: Screen, stopping: Stopping) -> None:
        self._options = options
        self._screen = screen
        self._stopping = stopping
        self._handoff = Handoff()
        self._failure: BaseException | None = None
        self._train_deadline_s = 0.0  # of the run, for the screen

    def run(self) -> str:
        """Starts everything, trains until told to stop, and takes everything down. Raises BarnraiseError."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        device, device_reason = choose_device(self._options.device)
        if self._options.name is not None:
            safe_name(self._options.name)
        entrance = enter(self._options, self._screen)
        try:
            keypair = entrance.home.keypair()
            self._options, recalled = recall(entrance.home, self._options)
            if recalled:
                self._screen.say(f"as before: {recalled}")
            with self._network(entrance, keypair) as (thread, network):
                return self._train(entrance, keypair, thread, network, (device, device_reason))
        finally:
            entrance.home.release()

    # ---------------------------------------------------------------- network

    @contextlib.contextmanager
    def _network(self, entrance: Entrance, keypair: Keypair) -> Iterator[tuple[NetworkThread, Network]]:
        options = self._options
        any_host = "127.0.0.1" if options.local else "0.0.0.0"
        listen = options.listen or entrance.home.listen() or (f"/ip4/{any_host}/tcp/0",)
        joins = self._options.join is not None
        config = NetworkConfig(
            listen=listen,
            announce=announced(options.announce, keypair.peer_id, local=options.local),
            bootstrap=entrance.bootstrap,
            must_reach=joins,  # who resumes a run may be the first one back
            local=options.local,
        )
        thread = NetworkThread(keypair, entrance.run, config)
        self._stopping.daemon_of(thread)
        try:
            network = thread.start()
            if network.listening:
                entrance.home.keep_listen(network.listening)
            yield thread, network
        finally:
            thread.stop(3.0)

    # ---------------------------------------------------------------- parts

    def _probe(self) -> None:
        """This thread applies commits: its arithmetic must round as everyone else's does, or its state would differ."""
        probe = run_probe()
        if not probe.passed:
            raise StateError(
                f"this machine's CPU arithmetic differs from the other peers' ({probe.reason}); it cannot take part"
            )

    def _train(
        self,
        entrance: Entrance,
        keypair: Keypair,
        thread: NetworkThread,
        network: Network,
        chosen: tuple[torch.device, str],
    ) -> str:
        self._probe()
        device, device_reason = chosen
        asker = Asker(network.transport, keypair, entrance.run)
        manifest = entrance.manifest or thread.call(fetch_manifest(asker, network), None)
        entrance.home.keep_manifest(manifest)
        entrance.home.remember_as_last()
        config = manifest.config
        self._train_deadline_s = config.round.train_deadline_s
        store = BlobStore(entrance.home.blobs)
        pacer = Pacer(Upload(_told_upload(self._options)), lambda: network.up_bytes)
        forwarding = Forwarding(network.transport, entrance.run)
        server = Server(keypair, entrance.run, manifest.to_bytes(), store, pacer, forwarding)
        # Whoever pastes the invite at once must not have to wait until text and model are ready here.
        thread.loop.call_soon_threadsafe(network.transport.serve, server.handle)
        introduction = Introduction(self._screen, entrance, keypair.peer_id, network, local=self._options.local)
        introduction.introduce(config, device_reason, self._options)
        text = BackgroundWindows(lambda progress: self._open_text(config, thread, asker, store, network, progress))
        try:
            model = build_model(config.model, device=device)
            layout = layout_of(model)
            math = RunMath.of(config, layout, make_codec(config.codec))
            self._screen.fact("parameters", round_cost(layout.numel, config))
            replica = Replica(math, keypair.peer_id, entrance.run, store, Generations(entrance.home.state))
            fetcher = Fetcher(asker, store)
            begun = begin(
                replica,
                entrance.home,
                config,
                lambda: thread.call(fetch_state(asker, network, fetcher), None),
                self._screen,
            )
            saved = load_safetensors(begun.optimizer) if begun.optimizer else {}
            inner = self._inner(config, model, device, saved)
            windows = self._wait_for_text(text)
            checkpoints = Checkpoints(
                entrance.home.checkpoints, entrance.run, config, layout, _tokenizer_file(config, self._options)
            )
            checkpoints.keeps_first = self._options.join is None
            checkpoints.room = lambda: room_left(entrance.home.path, self._options.max_disk_gb)
            trainer = Trainer(
                config,
                replica,
                inner,
                windows,
                self._handoff,
                lambda contribution: seal_message(keypair, entrance.run, contribution),
                checkpoints,
            )
            trainer.last_version = self._options.rounds
            if note := trainer.load(begun.theta_N, saved):
                self._screen.say(note, style="yellow")
            saved.clear()  # as large as the optimizer's own, and this frame lives as long as the run
            node = self._node(
                entrance, config, replica, (store, network, asker, server), checkpoints, introduction.book
            )
            before = node.participant.chain
            began_s = awake_or_asleep_s()
            reason = self._work(trainer, node, thread, begun.losses, introduction)
            chain, took_s = node.participant.chain, awake_or_asleep_s() - began_s
            self._screen.say(given(keypair.peer_id, before, chain, took_s, (network.up_bytes, network.down_bytes)))
            return reason
        finally:
            text.close()

    def _inner(
        self, config: RunConfig, model: torch.nn.Module, device: torch.device, saved: Mapping[str, Tensor]
    ) -> InnerTrainer:
        """How this machine takes inner steps; what was chosen is told."""
        kind, kind_reason = choose_optimizer(
            config.inner,
            device,
            sum(parameter.numel() for parameter in model.parameters()),
            wish=self._options.prefer_torch,
            saved=saved_kind(config.inner, saved) if saved else None,
        )
        self._screen.fact("optimizer", kind_reason)
        optimizer = make_inner_optimizer(config.inner, model.named_parameters(), device=device, kind=kind)
        precision, precision_reason = Precision.for_device(device, checkpointing=device.type == "cuda")
        self._screen.fact("precision", precision_reason)
        inner = InnerTrainer(model, optimizer, device, clip_norm=config.inner.clip_norm, precision=precision)
        inner.micro_batch, batch_reason = choose_micro_batch(
            inner, config.data.sequence_length, config.model.vocab_size, config.inner.batch_windows
        )
        self._screen.fact("micro-batch", batch_reason)
        return inner

    def _open_text(
        self,
        config: RunConfig,
        thread: NetworkThread,
        asker: Asker,
        store: BlobStore,
        network: Network,
        progress: object,
    ) -> Windows:
        """In the text's own thread. The embedded text is served to those whose Python has another one."""

        def fetch_blob(root: Digest) -> bytes:
            fetcher = Fetcher(asker, store)
            thread.call(fetch_from_known(fetcher, network, root), None)
            return store.read(root, check=True)

        windows = open_windows(
            config.data,
            self._options.data,
            self._options.tokenizer,
            cache_folder(),
            fetch_blob=fetch_blob,
            progress=progress,  # type: ignore[arg-type]
            vocab_size=config.model.vocab_size,
        )
        if config.data.kind == "embedded":
            root = Digest.from_hex(config.data.sources[0].digest)
            store.serve_file(root, embedded_path(cache_folder(), root))
        return windows

    def _wait_for_text(self, text: BackgroundWindows) -> Windows:
        shown = ""
        while not text.done:
            fraction, what = text.progress
            line = f"{what}: {100 * fraction:.0f} %"
            if line != shown:
                self._screen.live(line)
                shown = line
            time.sleep(0.05)
        windows = text.result()
        tokens = ", ".join(f"{name} {one.tokens:,}" for name, one in sorted(windows.sources.items())[:6])
        self._screen.fact("text", f"{windows.num_windows:,} windows; tokens: {tokens}")
        for note in windows.notes:
            self._screen.fact("", note)
        return windows

    def _node(
        self,
        entrance: Entrance,
        config: RunConfig,
        replica: Replica,
        network_parts: tuple[BlobStore, Network, Asker, Server],
        checkpoints: Checkpoints,
        book: AddressBook,
    ) -> Node:
        store, network, asker, server = network_parts
        first_number = beat_of(replica.incarnation, 0)
        routes = Routes(network.transport, asker.keypair, entrance.run, first_number)
        me = Self(
            peer=replica.author,
            name=self._options.name or line(entrance.home.path.name, MAX_NAME_BYTES),
            device=_device_name(self._options.device),
            incarnation=replica.incarnation,
        )
        server.state, server.log = replica.present.record, replica.log
        server.checkpoints = {kept.record.version: kept for kept in checkpoints.load(store)}

        seals = Seals.of(asker.keypair, entrance.run)
        present = replica.present
        start = HeadReached(present.state.chain, record_digest(present.record), present.root)
        participant = Participant(me, config, start, seals, replica.view)
        for seq in replica.pending:
            participant.restore(*replica.contributions[seq])

        def check_blob(contribution: Contribution, blob: bytes) -> None:
            check_contribution(replica.math, _as_entry(contribution), blob)

        parts = NodeParts(
            participant=participant,
            network=network,
            server=server,
            store=store,
            asker=replace(asker, transport=routes),
            routes=routes,
            reach=Reach(participant, network.transport, network.transport.known, answers),
            fetcher=Fetcher(asker, store, routes),
            handoff=self._handoff,
            book=book,
            check_blob=check_blob,
            verifier=seals.verifier,
            record_event=self._screen.record,
            lease=config.lease,
            introducers=frozenset(parse_address(one).peer for one in entrance.bootstrap if entrance.is_new),
        )
        return Node(parts, replica.chains, replica.roots)

    # ---------------------------------------------------------------- at work

    def _work(
        self,
        trainer: Trainer,
        node: Node,
        thread: NetworkThread,
        losses: Sequence[Event],
        introduction: Introduction,
    ) -> str:
        me = node.participant.me
        started = PeerStarted(me.peer, me.name, me.device, node.participant.chain.version)

        def ended(error: BaseException | None) -> None:
            if error is not None and self._failure is None:
                self._failure = error
                self._handoff.stop("the network failed")

        thread.run_in_background(node.run(started, *losses), ended)
        watch = asyncio.run_coroutine_threadsafe(self._watch(node, introduction), thread.loop)
        self._stopping.train(self._handoff)
        try:
            reason = trainer.run()
        finally:
            watch.cancel()
            thread.loop.call_soon_threadsafe(node.leave)
            thread.wait_background(2.0)
        if self._failure is not None:
            raise self._failure if isinstance(self._failure, BarnraiseError) else StateError(repr(self._failure))
        return reason

    async def _watch(self, node: Node, introduction: Introduction) -> None:
        """Keeps the last line of the screen, says who can dial us, and leaves after the version asked for."""
        lingering_since = None
        while True:
            await asyncio.sleep(0.5)
            introduction.look(node.participant)
            status = node.participant.figures
            version = node.participant.chain.version
            since_s = awake_or_asleep_s() - node.participant.presence.head_since_s
            time_left = f"{since_s:.0f} of at most {self._train_deadline_s:.0f} s before averaging"
            waits = node.participant.waits_for or f"training: {counted(status.steps_since_cut, 'step')}, {time_left}"
            self._screen.live(f"version {version}  {status.tokens_per_s:,.0f} tokens/s  {waits}")
            if self._options.rounds is not None and version >= self._options.rounds:
                lingering_since = lingering_since or time.monotonic()
                if not node.others_behind() or time.monotonic() - lingering_since > LINGER_S:
                    self._handoff.stop(f"version {version} is reached")
                    return


def _tokenizer_file(config: RunConfig, options: PeerOptions) -> TokenizerFile:
    """What checkpoints tell of the tokenizer; the text was opened with the very same one before."""
    if options.tokenizer is None:
        return byte_tokenizer_file()
    return trained_tokenizer_file(read_tokenizer(options.tokenizer), config.data.separator)


def _told_upload(options: PeerOptions) -> float | None:
    """What this peer can send, bytes/s; None when nobody has said."""
    if options.max_upload_mbit:
        return options.max_upload_mbit * 1e6 / 8
    return math.inf if options.local else None  # within one machine nothing is short


def _device_name(requested: str | None) -> str:
    device, _ = choose_device(requested)
    return line(describe_device(device), MAX_NAME_BYTES)


def _as_entry(contribution: Contribution) -> Entry:
    return Entry(
        author=contribution.author,
        seq=contribution.seq,
        incarnation=contribution.incarnation,
        root=contribution.root,
        first_unit=contribution.first_unit,
        end_unit=contribution.end_unit,
        tokens=contribution.tokens,
        steps=contribution.steps,
    )
