"""What `monitor`, `status` and `pull` do: trio programs around a `Watch` that end by themselves or at a signal.

Ctrl+C or SIGTERM cancels everything at once; a second one ends the process. Nothing is left behind: no process was started.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from coordinator.clean import clean
from coordinator.dashboard import ago, draw, plain_line, plain_note
from coordinator.home import Home
from coordinator.pull import Pulled, pull
from coordinator.summary import Summary, as_json
from coordinator.watch import Watch, watching
from swarm.errors import Unreachable
from swarm.words import counted

REDRAW_S: Final = 0.5
PLAIN_S: Final = 5.0
FALLBACK_WIDTH: Final = 110


def run_until_signal(job: Callable[[], Awaitable[None]]) -> bool:
    """Runs a trio program; returns False when a signal ended it."""
    interrupted = False

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                nonlocal interrupted
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    async for _ in signals:
                        interrupted = True
                        break  # a second signal finds the default handler, which ends the process
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            await job()
            nursery.cancel_scope.cancel()

    trio.run(main)
    return not interrupted


class _Output(Console):
    """Standard output; a reader that is gone is told to who writes, where rich ends the process inside of trio's tasks."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  called while the BrokenPipeError is handled


def open_console() -> Console:
    """Standard output, wide enough for a table where there is no terminal."""
    console = _Output()
    return console if console.is_terminal else _Output(width=FALLBACK_WIDTH)


def _can_redraw(console: Console) -> bool:
    """Whether it is a terminal that can take back what was drawn; TERM=dumb is none."""
    return console.is_terminal and not console.is_dumb_terminal


def print_summary(console: Console, summary: Summary, *, is_json: bool) -> None:
    """One look, as text or as JSON."""
    if is_json:
        sys.stdout.write(json.dumps(as_json(summary)) + "\n")
        sys.stdout.flush()
    else:
        console.print(draw(summary, console.width, None))


async def show_once(home: Home, console: Console, *, is_json: bool) -> None:
    """Looks at the swarm once. Where nobody answers, shows what is remembered and raises Unreachable."""
    async with watching(home) as watch:
        try:
            await watch.settled()
        except Unreachable as error:
            if (found := watch.remembered("nobody answers")) is None:
                raise
            summary, age_s = found
            if not is_json:
                console.print(f"Nobody answers now. This is how it was {ago(age_s)} ago:")
            print_summary(console, summary, is_json=is_json)
            raise Unreachable(f"{error}; what is shown is {ago(age_s)} old") from None
        print_summary(console, watch.summary(), is_json=is_json)


async def show_always(home: Home, console: Console, *, is_json: bool, notes: Path | None = None) -> None:
    """Shows the swarm until it is cancelled: full screen on a terminal, lines otherwise. What is appended to the file
    `notes` is shown among the news."""
    async with watching(home) as watch, trio.open_nursery() as nursery:
        await watch.settled()
        if notes is not None:
            nursery.start_soon(watch.tell_lines_of, notes)
        if _can_redraw(console) and not is_json:
            await _draw_always(watch, console)
        else:
            await _print_always(watch, console, is_json=is_json)


async def _draw_always(watch: Watch, console: Console) -> None:
    def picture() -> object:
        return draw(watch.summary(), console.width, console.height)

    try:
        with Live(picture(), console=console, screen=True, auto_refresh=False) as live:  # type: ignore[arg-type]
            while True:
                await trio.sleep(REDRAW_S)
                live.update(picture(), refresh=True)  # type: ignore[arg-type]
    finally:
        console.print(plain_line(watch.summary()), markup=False, highlight=False)


async def _print_always(watch: Watch, console: Console, *, is_json: bool) -> None:
    told: set[tuple[float, str]] = set()
    while True:
        summary = watch.summary()
        if is_json:
            print_summary(console, summary, is_json=True)
        else:
            news = [(at_s, text) for at_s, text, _ in summary.notes if (at_s, text) not in told]
            told = {(at_s, text) for at_s, text, _ in summary.notes}
            for at_s, text in news:
                console.print(plain_note(summary.at_s, at_s, text), markup=False, highlight=False, soft_wrap=True)
            console.print(plain_line(summary), markup=False, highlight=False, soft_wrap=True)
        await trio.sleep(PLAIN_S)


async def pull_to(home: Home, out_dir: Path, version: int | None, console: Console) -> Pulled:
    """Pulls a checkpoint with a progress display."""
    async with watching(home) as watch:
        await watch.settled()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, disable=not _can_redraw(console)) as progress:
            task = progress.add_task("asking for checkpoints", total=None)

            def show(had: int, total: int, name: str) -> None:
                progress.update(task, completed=had, total=total, description=clean(name, 40))

            return await pull(
                watch.transport,
                home.keypair,
                home.run,
                watch.live(),
                out_dir,
                version=version,
                on_progress=show,
            )


def pulled_text(pulled: Pulled) -> str:
    """What was pulled and how to load it."""
    record = pulled.record
    files, holders = counted(len(record.files), "file"), counted(len(pulled.holders), "peer")
    lines = [
        f"version {record.version} ({counted(record.tokens, 'token')}) in {pulled.directory}: {files}, "
        f"{pulled.num_bytes:,} bytes, of which {pulled.fetched_bytes:,} came now, from {holders}"
    ]
    if record.evaluation is not None and pulled.loss_spread is not None:
        low, high = pulled.loss_spread
        spread = f" (peers measured {low:.4f} to {high:.4f})" if high > low else ""
        windows = counted(len(record.evaluation.windows), "window")
        lines.append(f"held-out loss {record.evaluation.loss:.4f} on {windows}{spread}")
    for peer, count in sorted(pulled.wrong_chunks.items()):
        lines.append(f"{peer} sent {counted(count, 'wrong chunk')}, fetched elsewhere")
    lines.append("load it with:")
    lines.append(f'  AutoModelForCausalLM.from_pretrained("{pulled.directory}")')
    return "\n".join(lines)
