"""Change a shard while a training loader reads it: is a wrong clip ever in a batch, or does the process die?

    python tools/change_while_reading.py [--times 50] [--seed 0] [--folder FOLDER_OF_A_FILE_SYSTEM]

A process reads epochs of shuffled batches and compares every clip with the one that was written. At a random moment,
another process cuts the shard off, overwrites it in place (with zeros, or with another clip), replaces it by another
file, or deletes it. The reader must end with the error that names the shard (exit code 1) or, where it holds what it
needs, read on to the end; never with a signal, another exception, or a clip that is not the one that was written.

Last line: JSON {"changes": N, "noticed": N, "read on": N, "died": N, "wrong_clips": N}. Exit code 1 unless the last two
are 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from fake_shards import random_clips, write_shards  # noqa: E402
from stage1.data.loader import ClipLoader  # noqa: E402
from stage1.data.reader import ClipReader  # noqa: E402
from vidshard.shards import layout  # noqa: E402
from vidshard.util.errors import FormatError  # noqa: E402

CLIPS, EPOCHS = 64, 40
WRONG_CLIP, NOTICED = 7, 1  # exit codes of the reader


def cut(shard: Path, draw: random.Random) -> None:
    with open(shard, "r+b") as file:
        file.truncate(draw.randrange(shard.stat().st_size))


def zeros(shard: Path, draw: random.Random) -> None:
    with open(shard, "r+b") as file:
        file.seek(draw.randrange(shard.stat().st_size // 2))
        file.write(bytes(shard.stat().st_size // 2))


def another_clip(shard: Path, draw: random.Random) -> None:
    data = bytearray(shard.read_bytes())
    place = draw.randrange(len(data) // 2)
    data[place : place + 4096] = random.Random(1).randbytes(4096)
    with open(shard, "r+b") as file:
        file.write(data)


def replace(shard: Path, draw: random.Random) -> None:
    other = shard.with_suffix(".other")
    other.write_bytes(draw.randbytes(shard.stat().st_size))
    other.replace(shard)


def delete(shard: Path, draw: random.Random) -> None:
    shard.unlink()


CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    function.__name__: function for function in (cut, zeros, another_clip, replace, delete)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="of each kind of change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the shards lie, to try a file system")
    options = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(("changes", "noticed", "read on", "died", "wrong_clips"), 0))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        sound, used = Path(scratch, "sound"), Path(scratch, "used")
        write_shards(sound, random_clips(CLIPS, shape=(16, 56, 56)), [0, 1] * (CLIPS // 2), clips_per_shard=16)
        reader = ClipReader(sound)
        expected = [zlib.crc32(reader[row].tobytes()) for row in range(CLIPS)]
        for name, change in CHANGES.items():
            for number in range(options.times):
                draw = random.Random(f"{options.seed} {name} {number}")
                shutil.rmtree(used, ignore_errors=True)
                shutil.copytree(sound, used)
                child = os.fork()
                if child == 0:
                    os._exit(read(used, expected))
                time.sleep(draw.uniform(0, 0.3))
                change(used / layout.shard_name(draw.randrange(CLIPS // 16)), draw)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                counts["changes"] += 1
                ended = {0: "read on", NOTICED: "noticed", WRONG_CLIP: "wrong_clips"}.get(status, "died")
                counts[ended] += 1
                if ended in ("died", "wrong_clips"):
                    print(f"{name} {number}: {ended}, exit code {status}", flush=True)
    print(json.dumps(counts))
    return int(bool(counts["died"] or counts["wrong_clips"]))


def read(folder: Path, expected: list[int]) -> int:
    """Read all epochs, and return the exit code."""
    try:
        loader = ClipLoader(ClipReader(folder, checksums="first"), batch_size=4, shuffle=True)
        for _ in range(EPOCHS):
            for clips, _labels, rows in loader:
                for clip, row in zip(clips.numpy(), rows.tolist(), strict=True):
                    if zlib.crc32(clip.tobytes()) != expected[row]:
                        return WRONG_CLIP
    except FormatError:
        return NOTICED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 9
    return 0


if __name__ == "__main__":
    sys.exit(main())
