"""Feed crafted files to the commands, with digests that are right: a digest proves no origin.

    python tools/fuzz_inputs.py [--mutants 2000] [--seed 0] [--kind sets …]

Each mutant of a sound input has one value of another type, out of its range, or of another place, and is signed again.
Every command must refuse it with exit code 1 and a line that begins with "error:" (or name it, where a command reports
faults). Reported are tracebacks, commands that took longer than 10 s or a gigabyte, and values that were accepted.

Last line: JSON {"mutants": N, "tracebacks": N, "hangs": N, "over_1_gib": N, "silent": N}. Exit code 1 unless all but
the first are 0.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from fake_shards import write_shards  # noqa: E402
from inference_runs import LABELS, some_clips, write_checkpoint  # noqa: E402
from stage1.cli.main import main as stage1  # noqa: E402
from vidshard.cli.main import main as vidshard  # noqa: E402
from vidshard.shards import layout, manifest  # noqa: E402

MAX_SECONDS = 10
MAX_BYTES = 1 << 30
OPTIONAL = {"top_share"}  # fields that files of earlier versions lack
WRONG: list[Any] = [True, "x", "../../x", "=1", -5, 0.5, 2**70, 1e300, float("nan"), [], ["x"], {}, {"x": 1}]
# Values that may be anything, as they only describe; names of the commands' own options, and texts.
FREE = {"settings", "packages", "optimizer_state_dict", "scheduler_state_dict", "sampling", "metrics", "train_config"}
FREE |= {"run_state", "unscored"}
Mutate = Callable[[Path, random.Random], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    options = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(("mutants", "tracebacks", "hangs", "over_1_gib", "silent"), 0))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make_inputs(Path("sound"))
        for kind in options.kind or KINDS:
            for number in range(options.mutants):
                counts["mutants"] += 1
                for what, text in try_mutant(kind, random.Random(f"{options.seed} {kind} {number}")):
                    counts[what] += 1
                    print(f"{kind} {number}: {what}: {text}", flush=True)
    print(json.dumps(counts))
    sys.exit(any(count for what, count in counts.items() if what != "mutants"))


def make_inputs(folder: Path) -> None:
    """Write a sound input of every kind."""
    write_shards(folder / "shards", some_clips(), LABELS, split="Test")
    write_checkpoint(folder / "model.pt")
    run(
        "stage1",
        "infer",
        "--shards",
        f"{folder}/shards",
        "--checkpoint",
        f"{folder}/model.pt",
        "--out",
        f"{folder}/run",
    )
    rows = [
        {"video": f"v{i // 4}", "score": i / 20, "first_frame": i % 4 * 16, "last_frame": i % 4 * 16 + 15}
        for i in range(20)
    ]
    write_table(folder / "scores.csv", rows)
    clips = manifest.open_shards(folder / "shards").index
    marks = [{"key": clips.key(i), "mark": "true", "start_seconds": 0.0, "end_seconds": 0.3} for i in range(len(clips))]
    write_table(folder / "marks.csv", marks)
    lines = (
        f"v{i}.mp4  {'Fighting' if i % 2 else 'Normal'}  {'4  20' if i % 2 else '-1  -1'}  -1  -1\n" for i in range(5)
    )
    (folder / "events.txt").write_text("".join(lines))


def try_mutant(kind: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with one mutant."""
    shutil.rmtree("mutant", ignore_errors=True)
    shutil.copytree("sound", "mutant")
    mutate, commands = KINDS[kind]
    about = mutate(Path("mutant"), draw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    for command in commands:
        try:
            code, output, error = run(*command)
        except TimeoutError:
            yield "hangs", f"{about}: {' '.join(command)}"
            continue
        if error is not None and not isinstance(error, SystemExit):
            yield "tracebacks", f"{about}: {' '.join(command)}: {error!r:.200}"
        elif code == 0:
            yield "silent", f"{about}: {' '.join(command)}"
        elif not any(sign in output for sign in ("error: ", "✗ ", "not scored: ")):
            yield "tracebacks", f"{about}: {' '.join(command)}: exit code {code} without a reason"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before > MAX_BYTES:
        yield "over_1_gib", about


def run(package: str, *arguments: str) -> tuple[int, str, BaseException | None]:
    def end(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, end)
    signal.alarm(MAX_SECONDS)
    try:
        done = CliRunner().invoke({"stage1": stage1, "vidshard": vidshard}[package], arguments)
    finally:
        signal.alarm(0)
    if isinstance(done.exception, TimeoutError):
        raise done.exception
    return done.exit_code, done.output, done.exception


# ---- mutants


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places of all values that have a type and a range of their own."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            if name not in FREE:
                yield from leaves(part, (*place, name))
    elif isinstance(value, list) and value:
        for i, part in enumerate(value):
            yield from leaves(part, (*place, i))
    elif value is not None:
        yield place


def spoil(fields: Any, draw: random.Random) -> str:
    """Replace one value by one of another type, or drop it; return what was done."""
    place = draw.choice(list(leaves(fields)))
    holder = fields
    for name in place[:-1]:
        holder = holder[name]
    old = holder[place[-1]]
    likes = (int, float) if isinstance(old, float) else (type(old),)
    choices = [value for value in WRONG if type(value) not in likes or is_impossible(old, value)]
    is_optional = "model_config" in fields or place[-1] in OPTIONAL  # files of earlier versions lack these fields
    if isinstance(holder, dict) and not is_optional and draw.random() < 0.1:
        del holder[place[-1]]
        return f"without {place}"
    holder[place[-1]] = draw.choice(choices)
    return f"{place}: {old!r:.40} → {holder[place[-1]]!r}"


def is_impossible(old: Any, value: Any) -> bool:
    """Return True if `value` is of the type of `old`, but out of any range."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (value != value or abs(value) > 1e18)


def sign_manifest(folder: Path, fields: dict[str, Any]) -> None:
    fields.pop("digest", None)
    with contextlib.suppress(ValueError):
        fields["digest"] = hashlib.sha256(canonical(fields)).hexdigest()
    (folder / layout.MANIFEST_NAME).write_bytes(canonical(fields))


def canonical(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode("ascii")


def spoil_manifest(folder: Path, draw: random.Random) -> str:
    fields = json.loads((folder / "shards" / layout.MANIFEST_NAME).read_bytes())
    del fields["digest"]
    about = spoil(fields, draw)
    sign_manifest(folder / "shards", fields)
    return about


def spoil_index(folder: Path, draw: random.Random) -> str:
    """Put one value out of its range into a column of the index."""
    shards = manifest.open_shards(folder / "shards")
    table, column, value = draw.choice(
        [("clips", name, value) for name, value in
         [("shard", 9), ("offset", 2**62), ("offset", 2**64 - 1), ("size", 0), ("size", 2**32 - 1), ("video", 99),
          ("label", 5), ("label", -7), ("flags", 255), ("frame_gap_seconds", float("nan")), ("frame_gap_seconds", -1)]]
        + [("videos", name, value) for name, value in
           [("class", 99), ("split", -9), ("source_group", 99), ("decoder", 100), ("fps", float("inf")), ("fps", -1)]]
    )  # fmt: skip
    tables = {"clips": shards.index.clips.copy(), "videos": shards.index.videos.copy()}
    row = draw.randrange(len(tables[table]))
    with np.errstate(all="ignore"):
        tables[table][column][row] = value
    data = dataclasses.replace(shards.index, **tables).to_bytes()
    (folder / "shards" / shards.manifest.index_name).write_bytes(data)
    about = dataclasses.replace(shards.manifest, index_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest())
    (folder / "shards" / layout.MANIFEST_NAME).write_bytes(about.to_bytes())
    return f"{table}[{row}].{column} = {value}"


def spoil_record(folder: Path, draw: random.Random) -> str:
    """Spoil the record of one clip, and sign its shard."""
    shards = manifest.open_shards(folder / "shards")
    path = shards.shard_path(0)
    data = path.read_bytes()
    row = draw.randrange(len(shards.index))
    clip = shards.index.clips[row]
    start = int(clip["offset"]) + layout.padded(int(clip["size"])) + layout.TAR_BLOCK
    text = data[start:].partition(b"\0")[0]
    fields = json.loads(text)
    about = spoil(fields, draw)
    new = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    space = layout.padded(len(text))
    if len(new) > space:
        return spoil_record(folder, draw)
    header = bytearray(data[start - layout.TAR_BLOCK : start])
    header[124:136] = b"%011o\0" % len(new)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    new = new + bytes(layout.padded(len(new)) - len(new))
    if len(new) != space:
        return spoil_record(folder, draw)
    data = data[: start - layout.TAR_BLOCK] + bytes(header) + new + data[start + space :]
    path.write_bytes(data)
    about_set = shards.manifest
    shard = dataclasses.replace(about_set.shards[0], sha256=hashlib.sha256(data).hexdigest())
    signed = dataclasses.replace(about_set, shards=(shard, *about_set.shards[1:]))
    (folder / "shards" / layout.MANIFEST_NAME).write_bytes(signed.to_bytes())
    return f"record {row}: {about}"


def spoil_checkpoint(folder: Path, draw: random.Random) -> str:
    path = folder / "model.pt"
    fields = torch.load(path, weights_only=True)
    weights = fields["model_state_dict"]
    if draw.random() < 0.3:
        name = draw.choice(list(weights))
        old = weights[name]
        weights[name] = draw.choice(
            [old.double(), old[None], torch.full_like(old, torch.nan), torch.zeros(1).expand(1 << 33), 1, None, "x"]
        )
        about = f"weights {name}"
    else:
        del fields["model_state_dict"]
        about = spoil(fields, draw)
        fields["model_state_dict"] = weights
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    line = b"\nstage1 checkpoint, SHA-256 of the bytes before this line: %s\n"
    path.write_bytes(buffer.getvalue() + line % hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return about


def spoil_run(folder: Path, draw: random.Random) -> str:
    name = draw.choice(["run.json", "events.json", "anomalies.json", "predictions.csv"])
    path = folder / "run" / name
    if name.endswith(".csv"):
        return f"{name}: " + spoil_table(path, draw, {"key", "clip_index", "label", "confidence", "predicted"})
    fields = json.loads(path.read_bytes())
    about = spoil(fields, draw)
    path.write_text(json.dumps(fields))
    return f"{name}: {about}"


def spoil_scores(folder: Path, draw: random.Random) -> str:
    return spoil_table(folder / "scores.csv", draw, {"score", "first_frame", "last_frame"})


def spoil_labels(folder: Path, draw: random.Random) -> str:
    return spoil_table(folder / "marks.csv", draw, {"mark", "start_seconds", "end_seconds"})


def spoil_table(path: Path, draw: random.Random, columns: set[str]) -> str:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    row, column = draw.randrange(len(rows)), draw.choice(sorted(columns))
    value = draw.choice(["nan", "inf", "1e999", "x", "../x", "9" * 40, "-7", "0x1", "\x1b[2J"])
    if column in ("score", "key") and value in ("-7", "9" * 40, "0x1", "x", "nan", "inf", "1e999"):
        value = "x/../y"  # a score may be any number, and a key any of a few letters
    rows[row][column] = value
    write_table(path, rows)
    return f"row {row}, {column} = {value!r}"


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


SET = "mutant/shards"
INFER = ("stage1", "infer", "--shards", SET, "--checkpoint", "mutant/model.pt", "--out", "out", "--device", "cpu")
KINDS: dict[str, tuple[Mutate, list[tuple[str, ...]]]] = {
    "sets": (spoil_manifest, [("vidshard", "inspect", SET), ("vidshard", "verify", SET), ("vidshard", "preview", SET)]),
    "indexes": (spoil_index, [("vidshard", "inspect", SET), ("vidshard", "verify", SET), INFER]),
    "records": (spoil_record, [("vidshard", "verify", "--deep", SET)]),
    "checkpoints": (spoil_checkpoint, [INFER]),
    "runs": (spoil_run, [("stage1", "report", "mutant/run")]),
    "labels": (spoil_labels, [("stage1", "train", "--shards", SET, "--marks", "mutant/marks.csv", "--out", "out")]),
    "scores": (
        spoil_scores,
        [("stage1", "evaluate", "--scores", "mutant/scores.csv", "--annotations", "mutant/events.txt", "--out", "out")],
    ),
}

if __name__ == "__main__":
    main()
