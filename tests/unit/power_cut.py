"""What a power cut may leave of a folder: every change below it is recorded, then the disks that may be found are built.

The model is the worst that file systems do. Bytes that were not synced may be lost, cut short or garbage. A name made,
moved or removed outlives the cut for certain only once its folder was synced; until then any subset of such changes may
have reached the disk, each whole by itself (a rename is never half done).

`Recorder` replaces `os.fsync` and the calls that change names. New files and new bytes are found by looking at the folder
before each of these calls; a name that vanishes without a recorded call is an error, so nothing escapes it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, count
from pathlib import Path
from typing import Any, Final

import pytest

_ALL_SUBSETS: Final = 3  # of so many unsynced changes every subset is tried, of more those that differ most
Node = int  # a file or folder, whatever its name
Name = tuple[Node, str]  # in which folder, and how it is called there
ROOT: Final[Node] = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Names that one call set or removed, all at once."""

    names: tuple[tuple[Name, Node | None], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """The bytes of a file as they were found; the first ones come before its name."""

    file: Node
    content: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """The bytes of a file, or the names in a folder, are on the disk."""

    node: Node


@dataclass(frozen=True, slots=True)
class Mark:
    """Not of the disk: what was done or told at this point."""

    what: Any


Step = Change | Written | Synced | Mark


@dataclass(frozen=True, slots=True)
class Image:
    """A disk as it may be found: folders, and files with their bytes, by path."""

    folders: frozenset[str]
    files: frozenset[tuple[str, bytes]]


class Mount:
    """One folder that shows one image after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk"
        self.folder.mkdir()
        self._pool = folder / "contents"
        self._pool.mkdir()
        self._written: dict[bytes, tuple[Path, int]] = {}  # a file of each content, and its inode

    def show(self, image: Image) -> Path:
        """Makes the folder what the image says, whatever was done to it since; only the difference is touched."""
        wanted = {path: self._file_of(content) for path, content in image.files}
        there: dict[str, int] = {}
        waiting = [""]
        folders: list[str] = []
        while waiting:
            below = waiting.pop()
            for entry in os.scandir(self.folder / below):
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    waiting.append(path)
                else:
                    there[path] = entry.inode()
        for path, inode in there.items():
            if path not in wanted or wanted[path][1] != inode:
                os.unlink(self.folder / path)
                there[path] = -1
        for path in sorted(folders, reverse=True):
            if path not in image.folders:
                os.rmdir(self.folder / path)
        for path in sorted(image.folders - set(folders)):
            os.mkdir(self.folder / path)
        for path, (source, inode) in wanted.items():
            if there.get(path) != inode:
                os.link(source, self.folder / path)  # nothing here is ever written in place
        return self.folder

    def _file_of(self, content: bytes) -> tuple[Path, int]:
        if content not in self._written:
            path = self._pool / str(len(self._written))
            path.write_bytes(content)
            self._written[content] = path, path.stat().st_ino
        return self._written[content]


class Recorder:
    """Records what happens below a folder while `recording`."""

    def __init__(self, folder: Path) -> None:
        self.steps: list[Step] = []
        self._folder = os.path.abspath(folder)
        self._numbers = count(1)
        self._nodes: dict[str, Node] = {"": ROOT}  # by path below the folder
        self._seen: dict[Node, tuple[int, int]] = {}  # length and time of each file's bytes as they were recorded

    def mark(self, what: Any) -> None:
        """Notes what has happened by now."""
        self._look()
        self.steps.append(Mark(what))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """From here to its end all changes are recorded; what is in the folder already counts as on the disk."""
        self._look()
        self.steps += [Synced(node) for node in self._nodes.values()]
        with pytest.MonkeyPatch.context() as patched:
            for name in ("replace", "rename"):
                patched.setattr(os, name, self._moving(getattr(os, name)))
            for name in ("unlink", "remove", "rmdir"):
                patched.setattr(os, name, self._removing(getattr(os, name)))
            real = os.fsync

            def fsync(descriptor: int) -> None:
                path = self._below(f"/proc/self/fd/{descriptor}", resolve=True)
                if path is not None:
                    self._look()
                    self.steps.append(Synced(self._nodes[path]))
                else:
                    real(descriptor)  # those below are ours to lose

            patched.setattr(os, "fsync", fsync)
            yield
            self._look()

    # ---------------------------------------------------------------- calls that change names

    def _moving(self, real: Any) -> Any:
        def move(source: Any, target: Any) -> None:
            old, new = self._below(source), self._below(target)
            self._look()
            real(source, target)
            if old is None and new is None:
                return
            assert old is not None and new is not None, "a move over the edge of what is recorded"
            node = self._nodes[old]
            moved = {path: one for path, one in self._nodes.items() if path == old or path.startswith(old + "/")}
            for path in moved:
                del self._nodes[path]
            self._nodes.update({new + path[len(old) :]: one for path, one in moved.items()})
            self.steps.append(Change(((self._name(old), None), (self._name(new), node))))

        return move

    def _removing(self, real: Any) -> Any:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            where = path if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"
            below = self._below(where)
            self._look()
            real(path, dir_fd=dir_fd)
            if below is not None:
                self.steps.append(Change(((self._name(below), None),)))
                del self._nodes[below]

        return remove

    # ---------------------------------------------------------------- looking

    def _look(self) -> None:
        """Records files and folders that are new, and bytes that have changed."""
        found = {""}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in os.scandir(f"{self._folder}/{folder}"):
                path = f"{folder}/{entry.name}" if folder else entry.name
                found.add(path)
                is_new = path not in self._nodes
                if is_new:
                    self._nodes[path] = next(self._numbers)
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
                elif self._seen.get(self._nodes[path]) != (status.st_size, status.st_mtime_ns):
                    self._seen[self._nodes[path]] = (status.st_size, status.st_mtime_ns)
                    self.steps.append(Written(self._nodes[path], Path(entry.path).read_bytes()))
                if is_new:
                    self.steps.append(Change(((self._name(path), self._nodes[path]),)))
        assert found == set(self._nodes), f"changed by a call that is not recorded: {found ^ set(self._nodes)}"

    def _name(self, path: str) -> Name:
        folder, _, name = path.rpartition("/")
        return self._nodes[folder], name

    def _below(self, path: Any, *, resolve: bool = False) -> str | None:
        """The path below the recorded folder; None for one that is elsewhere."""
        text = os.readlink(path) if resolve else os.path.abspath(os.fspath(path))
        if text == self._folder:
            return ""
        return text[len(self._folder) + 1 :] if text.startswith(self._folder + "/") else None


@dataclass(slots=True)
class _Disk:
    """What is on the disk for certain, and what may be."""

    names: dict[Name, Node] = field(default_factory=dict)  # synced
    unsynced: list[Change] = field(default_factory=list)
    content: dict[Node, bytes] = field(default_factory=dict)  # as the programs see it
    synced: dict[Node, bytes | None] = field(default_factory=dict)  # of files; None: never
    folders: set[Node] = field(default_factory=lambda: {ROOT})

    def take(self, step: Step) -> None:
        match step:
            case Change(names):
                self.unsynced.append(step)
                self.folders.update(node for _, node in names if node is not None and node not in self.content)
            case Written(file, content):
                self.content[file] = content
            case Synced(node) if node in self.folders:
                own = [change for change in self.unsynced if any(folder == node for (folder, _), _ in change.names)]
                _apply(self.names, own)
                self.unsynced = [change for change in self.unsynced if change not in own]
            case Synced(node):
                self.synced[node] = self.content[node]
            case Mark():
                pass

    def images(self) -> Iterator[Image]:
        """The disks that a power cut at this moment may leave."""
        for subset in _subsets(self.unsynced):
            names = dict(self.names)
            _apply(names, subset)
            yield from self._with_contents(names)

    def _with_contents(self, names: dict[Name, Node]) -> Iterator[Image]:
        folders: set[str] = set()
        files: dict[str, Node] = {}
        waiting: list[tuple[Node, str]] = [(ROOT, "")]
        below: dict[Node, list[tuple[str, Node]]] = {}
        for (folder, name), node in names.items():
            below.setdefault(folder, []).append((name, node))
        while waiting:
            folder, path = waiting.pop()
            for name, node in below.get(folder, ()):
                if node in self.folders:
                    folders.add(path + name)
                    waiting.append((node, f"{path}{name}/"))
                else:
                    files[path + name] = node
        torn = [path for path, node in files.items() if self.synced.get(node) != self.content[node]]
        found = {path: self.content[node] for path, node in files.items()}
        yield Image(frozenset(folders), frozenset(found.items()))
        if torn:
            found.update({path: _torn(found[path], files[path]) for path in torn})
            yield Image(frozenset(folders), frozenset(found.items()))


def _torn(content: bytes, kind: int) -> bytes:
    """What may be found of bytes that were not synced: nothing, half of them, zeros, or one that is wrong."""
    return (b"", content[: len(content) // 2], bytes(len(content)), content[:-1] + b"\xa5")[kind % 4]


def _apply(names: dict[Name, Node], changes: Sequence[Change]) -> None:
    for change in changes:
        for name, node in change.names:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


def _subsets(changes: list[Change]) -> Iterator[list[Change]]:
    """Every subset of few. Of many, so that over all steps each pair is seen with the one lost and the other there."""
    if len(changes) <= _ALL_SUBSETS:
        for size in range(len(changes) + 1):
            yield from (list(one) for one in combinations(changes, size))
    else:
        yield from ([], changes, changes[-1:], [*changes[:-2], changes[-1]], changes[::2], changes[1::2])


def images_after(steps: Sequence[Step]) -> Iterator[tuple[int, list[Any], Image]]:
    """Each disk that a power cut behind each of the steps may leave, once: how many steps were done, what was marked by
    then, and the disk. An image that was possible before is not given again until the next mark."""
    disk, marks = _Disk(), []
    seen: set[Image] = set()
    for done, step in enumerate(steps, start=1):
        disk.take(step)
        if isinstance(step, Mark):
            marks.append(step.what)
            seen.clear()
        for image in disk.images():
            if image not in seen:
                seen.add(image)
                yield done, list(marks), image
