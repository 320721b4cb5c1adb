"""The entries of a store for one data set: which are missing, and their encoding by all processes together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from skipdit_cli.console import size_text
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.processes import Team
from skipdit_cli.training.encoded.tensor_shard import Shard, Tensors, bytes_of, names_of, write_shard
from skipdit_cli.training.encoded.tensor_store import MANIFEST, Store, intact_shard

MOST_ENTRIES, MOST_BYTES = 512, 1 << 27
"""The number of entries, and their bytes (128 MiB), at which a shard is written: what a killed run can lose."""


@dataclass(frozen=True)
class Work:
    """What is to be encoded for a data set.

    Args:
        kind: ``latents`` or ``texts``.
        total: The number of entries that the data set needs.
        missing: The names of those that no intact shard holds.
        bytes: About how many bytes the missing ones take.
    """

    kind: str
    total: int
    missing: list[str] = field(repr=False)
    bytes: int = 0

    @property
    def kept(self) -> int:
        """The number of entries that need not be encoded."""
        return self.total - len(self.missing)

    def __str__(self) -> str:
        return f"{len(self.missing):,} {self.kind} to encode take {size_text(self.bytes)}"


def check_room(store: Store, team: Team, *works: Work) -> None:
    """Say what is to be written, and check in the main process that the disk has room for it.

    Raises:
        UsageError: It has not.
    """
    works = tuple(work for work in works if work.missing)

    def check() -> None:
        store.check_writable()
        needed, free, what = sum(work.bytes for work in works), store.free_bytes(), " and ".join(map(str, works))
        if free < needed:
            raise UsageError(
                f"Cannot keep all in {store.folder}: {what}, but {size_text(free)} is free there; give another "
                "--cache-latents."
            )
        store.observer.say(f"{what}; {size_text(free)} is free in {store.folder}.")

    if works:
        team.on_main(check)


class Section:
    """The entries of a store that are of one kind and were computed under the same settings.

    Args:
        kind: ``latents`` or ``texts``.
        settings: What shapes every entry: anything that JSON can hold.
    """

    def __init__(self, store: Store, kind: str, settings: dict):
        self.store, self.kind, self.settings = store, kind, json.loads(json.dumps(settings))
        self.places: dict[str, tuple[Shard, int]] = {}
        self.damaged: list[Path] = []

    def read(self, name: str) -> Tensors:
        """Return an entry; one that is damaged or gone is looked for again, as another run may have made it anew.

        Raises:
            SkipditError: It is not there, or damaged.
        """
        with suppress(SkipditError):
            return self._read(name)
        self._update()
        return self._read(name)

    def _read(self, name: str) -> Tensors:
        if name not in self.places:
            raise SkipditError(f"An entry of the {self.kind} in {self.store.folder} is gone; run again to make it.")
        shard, position = self.places[name]
        return shard.read(position)

    def path(self, name: str) -> Path:
        """Return the shard of an entry."""
        return self.places[name][0].path

    def plan(
        self,
        names: Iterable[str],
        entry_bytes: Callable[[], int],
        team: Team = Team(),
        thorough: bool = False,
    ) -> Work:
        """Return what is to be encoded, the same in every process.

        Args:
            names: The names of the entries that a data set needs, in order.
            entry_bytes: Returns about how many bytes an entry takes; called if one is missing.
            thorough: As for ``Store.shards``.
        """
        needed, missing = list(dict.fromkeys(names)), None
        if team.is_main:
            shards, damaged = self._update(thorough)
            self.damaged = [path for path in damaged if path.name.startswith(self.kind)]
            for path in self.damaged:
                self.store.observer.warn(f"{path} is damaged; the samples in it are encoded again.")
            missing = [name for name in needed if name not in self.places]
            self._say(shards, len(needed), len(missing))
        missing = team.broadcast(missing)
        if not team.is_main:
            self._update()
        return Work(self.kind, len(needed), missing, len(missing) * entry_bytes() if missing else 0)

    def fill(
        self,
        work: Work,
        compute: Callable[[list[str]], Iterator[tuple[str, Tensors]]],
        team: Team = Team(),
    ) -> None:
        """Encode what is missing, each process its share, and update the manifest.

        Args:
            compute: Yields entries with their names.
        Raises:
            SkipditError: A shard cannot be written, or those of other processes are not in the folder.
        """
        size = max(1, min(MOST_ENTRIES, math.ceil(len(work.missing) / team.count)))
        blocks = [work.missing[first : first + size] for first in range(0, len(work.missing), size)]
        share = [name for block in team.share(blocks) for name in block]
        with self.store.observer.progress(self.kind, len(share)) if share else nullcontext() as advance:
            self._write(compute(share) if share else iter(()), size, advance)
        team.wait_for_all()  # all shards are written
        team.on_main(lambda: self._finish(work))
        if not team.is_main and work.missing:
            self._update()
        if any(name not in self.places for name in work.missing):
            raise SkipditError(
                f"Shards that other processes wrote are not in {self.store.folder}: give a --cache-latents on a disk "
                "that all processes share."
            )

    def _write(self, entries: Iterator[tuple[str, Tensors]], size: int, advance) -> None:
        """Write entries into shards; if the computation ends early, those that are finished are written, too."""
        waiting, total = {}, 0
        try:
            for name, tensors in entries:
                waiting[name] = tensors
                total += bytes_of(tensors)
                advance()
                if len(waiting) >= size or total >= MOST_BYTES:
                    full, waiting, total = waiting, {}, 0
                    self._write_shard(full)
        finally:
            if waiting:
                self._write_shard(waiting)

    def _write_shard(self, entries: dict[str, Tensors]) -> None:
        try:
            write_shard(self.store.folder, self.kind, self.settings, self.store.data, entries)
        except OSError as cause:
            raise SkipditError(
                f"Cannot keep {self.kind} in {self.store.folder}: {cause}; give another --cache-latents."
            ) from cause

    def _finish(self, work: Work) -> None:
        """Delete what is of no use, and write the manifest; a folder with all entries may be read-only."""
        try:
            for path in self.damaged:
                if path.is_file() and intact_shard({}, path) is None:  # it was not made again under the same name
                    path.unlink()
            shards, _ = self._update()
            self.store.remove_stale()
            if shards:
                self.store.write_manifest(shards)
        except OSError as cause:
            if work.missing:
                raise SkipditError(f"Cannot write {self.store.folder / MANIFEST}: {cause}.") from cause

    def _update(self, thorough: bool = False) -> tuple[list[Shard], list[Path]]:
        """Find the entries again, and return all intact shards of the store and the damaged ones."""
        shards, damaged = self.store.shards(thorough)
        fitting = [shard for shard in shards if (shard.kind, shard.settings) == (self.kind, self.settings)]
        self.places = names_of(fitting)
        return shards, damaged

    def _say(self, shards: list[Shard], needed: int, missing: int) -> None:
        """Say how many entries are kept, and if there are none what the folder holds instead."""
        store = self.store
        store.warn_of_former_layout()
        store.observer.say(f"{needed - missing:,} of {needed:,} {self.kind} are kept in {store.folder}.")
        others = [shard for shard in shards if shard.kind == self.kind]
        if missing < needed or not others:
            return
        nearest = min(others, key=lambda shard: len(_differing(shard.settings, self.settings)))
        number = sum(len(shard.names) for shard in others if shard.settings == nearest.settings)
        differences = _differing(nearest.settings, self.settings) or ["other data"]
        store.observer.say(f"{store.folder} holds {number:,} other {self.kind}: of {', '.join(differences)}.")


def _differing(theirs: dict, ours: dict) -> list[str]:
    """Return how the settings of a shard differ from those of a run: "size [8, 8] instead of [16, 16]"."""
    differences = []
    for key in sorted({*theirs, *ours}):
        one, other, noun = theirs.get(key), ours.get(key), key.replace("_", " ")
        if one != other:
            is_short = len(str(one)) < 40 and len(str(other)) < 40
            differences.append(f"{noun} {one} instead of {other}" if is_short else f"another {noun}")
    return differences
