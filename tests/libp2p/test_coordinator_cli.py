"""The maintainer's commands as real processes against three peers on loopback sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from coordinator.net import open_transport
from swarm.digest import blob_digest, digest_of
from swarm.events import RoundCommitted
from swarm.identity import Keypair, PeerId
from swarm.invite import Invite
from swarm.messages import CheckpointFile, CheckpointRecord, Evaluation, open_message
from swarm.streams import NOBODY_READS
from tests.unit.fake_swarm import RUN, FakePeer, FakeSwarm, a_digest

pytestmark = pytest.mark.system
GENEROUS_S = 60.0
WEIGHTS = bytes(range(256)) * 8192  # 2 MiB


@asynccontextmanager
async def peers_on_loopback(size: int) -> AsyncIterator[FakeSwarm]:
    """Peers that answer over real sockets."""
    swarm = FakeSwarm(size)
    root = blob_digest(WEIGHTS)
    async with AsyncExitStack() as stack:
        for peer in swarm.peers:
            transport = await stack.enter_async_context(open_transport(peer.keypair, [("127.0.0.1", 0)]))
            peer.beat(addresses=transport.addresses(), waits_for="contributions of \x1b[31m2 others")
            peer.blobs[root] = WEIGHTS
            peer.record = CheckpointRecord(
                RUN, 4, 4000, 0, a_digest("head 4"), a_digest("state 4"), (),
                (CheckpointFile("model.safetensors", len(WEIGHTS), root),), Evaluation(3.3, (0, 1)),
            )  # fmt: skip
            peer.tell(
                1e9,
                RoundCommitted(
                    7, a_digest("head 7"), a_digest("state 7"), 3000, 7000, peer.peer_id, 0,
                    tuple(one.peer_id for one in swarm.peers), (), False, 4.5, "all of 3 members",
                ),
            )  # fmt: skip

            def handler(peer: FakePeer) -> Callable[[PeerId, bytes], Awaitable[bytes]]:
                async def answer(asker: PeerId, payload: bytes) -> bytes:
                    author, message = open_message(payload, run=RUN)
                    assert author == asker
                    return swarm.answer(peer, message)

                return answer

            transport.serve(handler(peer))
        yield swarm


def invite_of(swarm: FakeSwarm, *dead: str) -> str:
    return Invite(RUN, (*dead, swarm.peers[0].status.addresses[0])).encode()


async def command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(GENEROUS_S):
        return await trio.run_process(
            [sys.executable, "-m", "coordinator", *arguments], capture_stdout=True, capture_stderr=True, check=False
        )


def test_status_in_json_and_text_and_then_without_an_invite(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers_on_loopback(3) as swarm:
            dead = f"/ip4/127.0.0.1/tcp/1/p2p/{Keypair.from_seed(b'd' * 32).peer_id.base58}"
            home = str(tmp_path / "home")
            done = await command("status", invite_of(swarm, dead), "--home", home, "--json")
            assert (done.returncode, done.stderr) == (0, b"")
            found = json.loads(done.stdout)
            assert (found["version"], found["num_live"], found["digests_equal"]) == (7, 3, True)
            assert found["run"] == RUN.hex() and found["tokens_per_s"] == 3000.0 and found["heldout_loss"] == 3.25
            assert {peer["waits_for"] for peer in found["peers"]} == {"contributions of 2 others"}
            (one,) = found["rounds"]
            assert (one["num_tellers"], one["digests_equal"], one["reason"]) == (3, True, "all of 3 members")
            text = await command("status", "--once", "--home", home)
            assert text.returncode == 0
            assert b"peer2" in text.stdout and b"digests equal" in text.stdout and b"\x1b" not in text.stdout

    trio.run(main)


def test_pull_brings_the_checkpoint(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers_on_loopback(3) as swarm:
            out = tmp_path / "out"
            done = await command("pull", str(out), invite_of(swarm), "--home", str(tmp_path / "home"))
            assert (done.returncode, done.stderr) == (0, b"")
            assert f'AutoModelForCausalLM.from_pretrained("{out}")' in done.stdout.decode().replace("\n", "")
            assert (out / "model.safetensors").read_bytes() == WEIGHTS
            assert json.loads((out / "barnraise-record.json").read_text())["version"] == 4

    trio.run(main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_monitor_in_a_pipe_prints_lines_and_ends_at_a_signal(number: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with peers_on_loopback(2) as swarm:
            arguments = ["monitor", invite_of(swarm), "--home", str(tmp_path / "home")]
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "coordinator", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stdout is not None and process.stderr is not None
            seen = b""
            with trio.fail_after(GENEROUS_S):
                while b"peers 2 live of 2" not in seen:
                    seen += await process.stdout.receive_some()
                os.kill(process.pid, number)
                assert await process.wait() == 0
            assert await process.stderr.receive_some() == b""
            await process.stdout.aclose()
            await process.stderr.aclose()

    trio.run(main)


@contextmanager
def nobody_reads() -> Iterator[int]:
    """The writing end of a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "--json"], ["monitor"], ["invite"], ["--help"]], ids=" ".join
)
def test_without_a_reader_it_ends_silently(arguments: list[str], buffered: str, tmp_path: Path) -> None:
    async def main() -> None:
        home = [] if arguments == ["--help"] else ["--home", str(tmp_path / "home")]
        async with peers_on_loopback(1) as swarm:
            await command("status", invite_of(swarm), *home)
            with nobody_reads() as stdout, trio.fail_after(GENEROUS_S):
                done = await trio.run_process(
                    [sys.executable, "-m", "coordinator", *arguments, *home],
                    stdout=stdout,
                    capture_stderr=True,
                    check=False,
                    env={**os.environ, "PYTHONUNBUFFERED": buffered},
                )
            assert done.returncode == NOBODY_READS
            note = b"only this machine can join by this invite: no other address is known\n"
            assert done.stderr == (note if arguments == ["invite"] else b"")

    trio.run(main)


def test_a_terminal_that_cannot_redraw_gets_lines(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers_on_loopback(2) as swarm:
            master, slave = os.openpty()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "coordinator", "monitor", invite_of(swarm), "--home", str(tmp_path / "home")],
                stdout=slave,
                stderr=slave,
                env={**os.environ, "TERM": "dumb"},
            )
            os.close(slave)
            async with trio.lowlevel.FdStream(master) as terminal:
                seen = b""
                with trio.fail_after(GENEROUS_S):
                    while seen.count(b"peers 2 live of 2") < 2:  # a second line: it goes on
                        seen += await terminal.receive_some()
                    process.send_signal(signal.SIGINT)
                    await process.wait()
            assert b"\x1b" not in seen and process.returncode == 0

    trio.run(main)


def test_a_status_that_nobody_answers_shows_how_it_was_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        home = str(tmp_path / "home")
        async with peers_on_loopback(3) as swarm:
            await command("status", invite_of(swarm), "--home", home)
        text, coded = await command("status", "--home", home), await command("status", "--home", home, "--json")
        for done in (text, coded):
            assert done.returncode == 2
            assert re.fullmatch(rb"error: nobody answers at .*; what is shown is [0-9]+s old\n", done.stderr)
        assert re.match(rb"Nobody answers now. This is how it was [0-9]+s ago:\n", text.stdout)
        assert b"version 7" in text.stdout and b"peers 0 live of 3" in text.stdout
        found = json.loads(coded.stdout)
        assert (found["version"], found["num_live"], found["num_peers"]) == (7, 0, 3)

    trio.run(main)


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    async def main() -> None:
        nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{Keypair.from_seed(b'd' * 32).peer_id.base58}"
        async with peers_on_loopback(1) as swarm:
            await command("status", invite_of(swarm), "--home", str(tmp_path / "known"))
            foreign = Invite(digest_of("other"), swarm.peers[0].status.addresses).encode()
            cases = {
                ("status", "barnraise1-abc"): "cut short or mistyped",
                ("status", "hello"): "is not an invite",
                (
                    "status",
                    Invite(RUN, (nobody,)).encode(),
                    "--home",
                    str(tmp_path / "a"),
                ): "nobody answers at /ip4/127.0.0.1/tcp/1 (connection refused); such an address",
                ("monitor", foreign, "--home", str(tmp_path / "b")): "nobody answers at",
                ("monitor", foreign, "--home", str(tmp_path / "known")): "belongs to run",
                ("status", "--home", str(tmp_path / "empty")): "pass the invite",
                ("pull", str(tmp_path / "out"), "--version", "9", "--home", str(tmp_path / "known")): "version 9",
            }
            for arguments, line in cases.items():
                done = await command(*arguments)
                said = done.stderr.decode()
                assert done.returncode == 2 and line in said and said.count("\n") == 1, (arguments, said)
                assert done.stdout == b""

    trio.run(main)


def test_a_fresh_invite_of_those_it_has_reached(tmp_path: Path) -> None:
    async def main() -> None:
        home = str(tmp_path / "home")
        async with peers_on_loopback(3) as swarm:
            await command("status", invite_of(swarm), "--home", home)
            addresses = {address for peer in swarm.peers for address in peer.status.addresses}
        done = await command("invite", "--home", home)  # nobody is there any more, nor needed
        assert done.returncode == 0 and b"only this machine" in done.stderr
        invite = Invite.parse(done.stdout.decode())
        assert invite.run == RUN and set(invite.addresses) == addresses

    trio.run(main)
