"""State of an unfinished build, which lets the same command resume it.

    shards/Train/.work/
      lock                 lock of a process that builds the whole set
      tasks/               task-00002.lock: lock of array task 2
      start.lock           lock for writing the files that all array tasks share
      tasks/array.json     numbering of the array
      fingerprint.json     settings, packages and videos of this build; a different one is refused
      some-probes.json     probe results so far, in case the run is killed before all videos are probed
      probes.json          metadata of every video; written once, so that the plan never changes
      probes/000003.json   metadata of a batch of videos, probed by one array task; .lock: in progress
      source.json          the videos with their labels, for `finalize`, which works without SOURCE
      packets/0001/001234.npz  packet table of video 1234
      failures.json        videos that failed before --max-failures stopped a run; not retried
      parts/000345.part    decoded samples of chunk 345, useless to another run (parts-00002/: task 2)
      shard-000007.json    record of committed shard 7: digest, index rows, failures
      commit/              staged shards, index and manifest that will replace or extend a finished set

The folder is deleted when the build is finished.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.planning.video_metadata import Probe, VideoFailure, probe_from_json
from vidshard.shards import layout
from vidshard.shards.manifest import CLIP_ROW
from vidshard.shards.writer import Rows
from vidshard.util import atomic
from vidshard.util.errors import UserError, fault_in
from vidshard.util.text import first_of

STATE_NAME = ".work"
TABLES_IN_A_FOLDER = 1000  # as a folder of a million files is slow on many file systems


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A committed shard. The rows of its clips stay in the file of the record (`BuildState.read_rows`)."""

    bytes: int
    sha256: str
    num_clips: int
    decoders: dict[int, str]  # video with clips → decoder that read it
    failures: dict[int, VideoFailure]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "failures": _failures_to_json(self.failures)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ShardRecord:
        return cls(
            bytes=fields["bytes"],
            sha256=fields["sha256"],
            num_clips=fields.get("num_clips", len(fields["rows"])),  # older records lack it
            decoders={int(video): sys.intern(name) for video, name in fields["decoders"].items()},
            failures=_failures_from_json(fields["failures"]),
        )


class BuildState:
    """Paths and contents of the folder of an unfinished build.

    `staged`: keep shards apart until all are done, so that the set in `out` stays valid. `task`: this process is one of
    several array tasks.
    """

    def __init__(self, out: Path, *, staged: bool = False, task: int | None = None) -> None:
        self.out, self.staged, self.task = out, staged, task
        self.path = out / STATE_NAME
        self.lock_path = self.path / "lock"
        self.tasks_path = self.path / "tasks"
        self.array_path = self.tasks_path / "array.json"
        self.start_lock_path = self.path / "start.lock"
        self.fingerprint_path = self.path / "fingerprint.json"
        self.source_path = self.path / "source.json"
        self.probes_path = self.path / "probes.json"
        self.fragments_path = self.path / ("parts" if task is None else f"parts-{task:05d}")
        self.commit_path = self.path / "commit"

    def task_lock_path(self, task: int) -> Path:
        return self.tasks_path / f"task-{task:05d}.lock"

    def probe_batch_path(self, number: int) -> Path:
        return self.path / "probes" / f"{number:06d}.json"

    def table_path(self, video: int) -> Path:
        folder, name = self.path / "packets", f"{video:06d}.npz"
        without_groups = folder / name  # as earlier versions wrote it
        return without_groups if without_groups.exists() else folder / f"{video // TABLES_IN_A_FOLDER:04d}" / name

    def fragment_path(self, chunk: int) -> Path:
        return self.fragments_path / f"{chunk:06d}.part"

    def shard_path(self, shard: int) -> Path:
        return (self.commit_path if self.staged else self.out) / layout.shard_name(shard)

    def _record_path(self, shard: int) -> Path:
        return self.path / Path(layout.shard_name(shard)).with_suffix(".json").name

    @functools.cached_property
    def fingerprint_sha256(self) -> str:
        """Digest of the fingerprint, which distinguishes the shards of this build from those of others."""
        return hashlib.sha256(self.fingerprint_path.read_bytes()).hexdigest()

    def start(self, fingerprint: dict[str, Any], *, retry_failed: bool = False) -> None:
        """Start or resume the build described by `fingerprint`. Raises UserError if the folder contains a different
        build.

        `retry_failed`: the files of failed videos may have changed.
        """
        recorded = _read_json(self.fingerprint_path)
        fingerprint = json.loads(json.dumps(fingerprint))
        if recorded is not None and recorded != fingerprint:
            difference = self._difference(recorded, fingerprint, may_change=retry_failed)
            if difference and self.staged:  # left from a change to the finished set that no longer applies
                self.remove_all_but_lock()
                recorded = None
            elif difference:
                raise UserError(
                    f"{self.out} contains an unfinished build with different {difference}; "
                    f"choose another `out`, or delete {self.out} to start again"
                )
        self.drop_fragments()
        num_groups = -(-len(fingerprint["videos"]) // TABLES_IN_A_FOLDER)
        groups = [self.path / "packets" / f"{group:04d}" for group in range(num_groups)]
        for folder in (*groups, self.fragments_path, *([self.commit_path] if self.staged else [])):
            folder.mkdir(parents=True, exist_ok=True)
        if self.task is None:
            self.drop_partial()
        if recorded != fingerprint:
            atomic.write_json(self.fingerprint_path, fingerprint)

    def _difference(self, old: dict[str, Any], new: dict[str, Any], *, may_change: bool) -> str:
        """Describe how two fingerprints differ; "" if only failed videos differ and `may_change`."""
        if {**old, "videos": None} != {**new, "videos": None}:
            return describe_difference({**old, "videos": {}}, {**new, "videos": {}})
        before, now = ({path: about for path, *about in rows["videos"]} for rows in (old, new))
        changed = [path for path in before if path in now and before[path] != now[path]]
        failed = {new["videos"][number][0] for number in self.failed_videos()} if before.keys() == now.keys() else set()
        if before.keys() == now.keys() and may_change and failed.issuperset(changed):
            return ""
        return f"videos ({describe_changes(sorted(now.keys() - before), sorted(before.keys() - now), changed)})"

    def failed_videos(self) -> set[int]:
        """Return the numbers of the videos that have failed so far."""
        failed = {n for n, probe in enumerate(self.read_probes() or []) if isinstance(probe, VideoFailure)}
        for path in self.path.glob("shard-*.json"):
            failed |= {int(video) for video in (_read_json(path) or {"failures": {}})["failures"]}
        return failed | self.read_failures().keys()

    def forget_failures(self) -> None:
        """Delete the records of all shards without a failed video."""
        for path in self.path.glob("failures*.json"):
            path.unlink()
        for path in self.path.glob("shard-*.json"):
            if (_read_json(path) or {"failures": {}})["failures"]:
                path.unlink()
        atomic.sync_folder(self.path)

    def drop_fragments(self) -> None:
        """Delete the fragments of this process; without an array task, those of all tasks."""
        for folder in [self.fragments_path] if self.task is not None else self.path.glob("parts*"):
            shutil.rmtree(folder, ignore_errors=True)

    def drop_partial(self) -> None:
        """Delete the partial files of killed runs. Call it only if no other process writes."""
        for leftover in self.out.glob("*" + atomic.PARTIAL_SUFFIX):
            leftover.unlink(missing_ok=True)

    def read_probes(self) -> list[Probe] | None:
        return read_probes(self.probes_path)

    def read_some_probes(self) -> dict[int, Probe]:
        """Return video → probe result of the videos that a killed run had read."""
        some = _read_json(self.path / "some-probes.json") or {}
        return {int(video): probe_from_json(fields) for video, fields in some.items()}

    def write_some_probes(self, probes: Mapping[int, Probe]) -> None:
        some = {str(video): dataclasses.asdict(probe) for video, probe in probes.items()}
        atomic.write_json(self.path / "some-probes.json", some)

    def read_failures(self) -> dict[int, VideoFailure]:
        """Return the failed videos of runs that ended with `write_failures`."""
        kept: dict[str, Any] = {}
        for path in sorted(self.path.glob("failures*.json")):
            kept |= _read_json(path) or {}
        return _failures_from_json(kept)

    def write_failures(self, failures: Mapping[int, VideoFailure]) -> None:
        name = "failures.json" if self.task is None else f"failures-{self.task:05d}.json"
        atomic.write_json(self.path / name, _failures_to_json(failures))

    def read_record(self, shard: int) -> ShardRecord | None:
        """Return the record of a committed shard; None if it is not committed, or its file has changed in size.

        Of shards built by array tasks, only those made for the same settings, packages and videos count.
        """
        fields = _read_json(self._record_path(shard))
        if fields is None or (self.task is not None and fields.get("made_for") != self.fingerprint_sha256):
            return None
        record = ShardRecord.from_json(fields)
        path = self.shard_path(shard)
        return record if path.is_file() and path.stat().st_size == record.bytes else None

    def read_rows(self, shard: int) -> Rows:
        """Return the rows of a committed shard. The column `video` is a number in the sorted list of videos."""
        rows = json.loads(self._record_path(shard).read_bytes())["rows"]
        if isinstance(rows, list):  # of an older record
            return np.array([tuple(row) for row in rows], CLIP_ROW)
        return np.frombuffer(bytearray(base64.b64decode(rows)), CLIP_ROW)

    def write_record(self, shard: int, record: ShardRecord, rows: Rows) -> None:
        """Commit a shard: the last write for it."""
        packed = base64.b64encode(rows.tobytes()).decode("ascii")  # a list of numbers takes 20 times as long to parse
        fields = {**record.to_json(), "rows": packed, "made_for": self.fingerprint_sha256}
        atomic.write_json(self._record_path(shard), fields)

    def drop_record(self, shard: int) -> None:
        self._record_path(shard).unlink(missing_ok=True)
        atomic.sync_folder(self.path)

    def remove_all_but_lock(self) -> None:
        """Delete the state. The file that marks it as an array's goes last, so that `finalize` can repeat this."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.source_path):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry != self.lock_path:
                entry.unlink()

    def remove_if_empty(self) -> None:
        """Delete the folder, then the output folder, if they are empty."""
        for folder in (self.path, self.out):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _failures_to_json(failures: Mapping[int, VideoFailure]) -> dict[str, tuple[str, str]]:
    return {str(video): (failure.reason, failure.message) for video, failure in failures.items()}


def _failures_from_json(fields: Mapping[str, Any]) -> dict[int, VideoFailure]:
    return {int(video): VideoFailure(reason=reason, message=message) for video, (reason, message) in fields.items()}


def read_probes(path: Path) -> list[Probe] | None:
    """Return the probe results in a file; None if it is missing or was not written completely."""
    probes: list[Probe] | None = _read_json(path, object_hook=probe_from_json)
    return probes


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    atomic.write_json(path, [dataclasses.asdict(probe) for probe in probes])


def check_output(out: Path) -> None:
    """Raise UserError if `out` cannot be the output of a build: it is a file, or contains foreign files."""
    above = next((folder for folder in Path(os.path.abspath(out)).parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise UserError(f"the output {out} is inside {above}, which is a file, not a folder; choose another `out`")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"the output {out} is a file, expected a folder; choose another `out`")
    names = (entry.name.removesuffix(atomic.PARTIAL_SUFFIX) for entry in out.iterdir())
    foreign = sorted(name for name in names if name != STATE_NAME and not layout.is_set_name(name))
    if foreign:
        raise UserError(f"the output {out} contains other files ({first_of(foreign, 3)}); choose another `out`")
    started = any((out / STATE_NAME / name).exists() for name in ("fingerprint.json", "lock", "commit", "tasks"))
    finished = (out / layout.MANIFEST_NAME).exists()
    if not started and not finished and any(entry.name != STATE_NAME for entry in out.iterdir()):
        raise UserError(f"the output {out} contains shards without a manifest; delete it, or choose another `out`")


def describe_changes(new: Sequence[str], gone: Sequence[str], changed: Sequence[str] = ()) -> str:
    """Describe the paths that were added, removed and changed.

    >>> describe_changes(["a", "b"], [])
    '2 new: a, b'
    """
    differences = [
        f"{len(paths):,} {what}: {first_of(paths, 3)}"
        for what, paths in (("new", new), ("gone", gone), ("changed", changed))
        if paths
    ]
    return "; ".join(differences) or "same names, but different sizes, labels or recordings"


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe how two fingerprints differ.

    >>> describe_difference({"settings": {"clip_len": 16}, "videos": 3}, {"settings": {"clip_len": 8}, "videos": 4})
    'settings (clip_len 16, now 8; videos 3, now 4)'
    """
    flat_old, flat_new = _flatten(old), _flatten(new)
    names = [name for name in sorted(flat_old.keys() | flat_new.keys()) if flat_old.get(name) != flat_new.get(name)]
    differences = [
        f"{name} {_value_text(flat_old.get(name))}, now {_value_text(flat_new.get(name))}"
        for name in names
        if not name.endswith("sha256")
    ]
    if not differences and names:
        return "videos (their names, sizes or times changed)"
    return f"settings ({'; '.join(differences)})"


def _flatten(fields: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flatten(value) if isinstance(value, Mapping) else {name: value}
    return flat


def _value_text(value: Any) -> str:
    return "none" if value is None else str(value)


def _read_json(path: Path, **options: Any) -> Any:
    """Return the content of a JSON file; None if it is missing or invalid (an interrupted write).

    Raises OSError where the machine is at fault, as the file may be whole.
    """
    try:
        return json.loads(path.read_bytes(), **options)
    except (OSError, ValueError) as error:
        if fault_in(error):
            raise
        return None
