"""Put real MP4s into another container, damage some of them, build them all, and check the results.

    python tools/bad_remuxes.py FOLDER --container mkv --damaged 60 --sound 20 --seed 1

The truth is known: the frames of the MP4 as ffmpeg decodes them. Sound ones must be built, with each frame in its
place; damaged ones may be refused, flagged or right. Both are built twice, by uniform and by dense sampling. `short`
is a video that lacks frames, and all that are there are right: what follows a cut, a reader cannot know. Exit code 1
if anything crashes or is lost, or a limit is broken. Needs ffmpeg on the PATH.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import bad_inputs
from bad_inputs import GRACE_SECONDS, Verdict
from vidshard import SamplingConfig

CONTAINERS = {"mkv": "matroska", "ts": "mpegts", "avi": "avi", "flv": "flv"}  # suffix: ffmpeg's name
SAMPLINGS = {"uniform": SamplingConfig(), "dense": bad_inputs.DENSE}
BLOCK = 4096
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20"]
# How an MP4 is encoded before it goes into the container.
ENCODINGS: dict[str, list[str]] = {
    "copied": ["-c:v", "copy"],
    "b_frames": [*X264, "-bf", "3", "-x264-params", "b-pyramid=normal"],
    "open_gops": [*X264, "-g", "20", "-x264-params", "open-gop=1:bframes=4"],
    "no_b_frames": [*X264, "-bf", "0", "-g", "30"],
    "with_audio": ["-c:v", "copy", "-c:a", "aac", "-b:a", "48k", "-shortest"],
}

Damage = Callable[[bytearray, random.Random], bytes]


def cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: int(len(data) * rng.uniform(0.2, 0.98))])


def zero_hole(data: bytearray, rng: random.Random) -> bytes:
    return bytes(_put(data, _place(data, rng), bytes(BLOCK)))


def zero_tail(data: bytearray, rng: random.Random) -> bytes:
    kept = int(len(data) * rng.uniform(0.3, 0.9))
    return bytes(data[:kept]) + bytes(len(data) - kept)


def removed(data: bytearray, rng: random.Random) -> bytes:
    place = _place(data, rng)
    return bytes(data[:place] + data[place + rng.choice((188, 1024, BLOCK, 4 * BLOCK)) :])


def repeated(data: bytearray, rng: random.Random) -> bytes:
    place = _place(data, rng)
    return bytes(data[: place + BLOCK] + data[place:])


def flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 4, 16, 64))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwritten(data: bytearray, rng: random.Random) -> bytes:
    return bytes(_put(data, _place(data, rng), rng.randbytes(rng.choice((16, 256, BLOCK)))))


def swapped(data: bytearray, rng: random.Random) -> bytes:
    first, second = _place(data, rng), _place(data, rng)
    here, there = bytes(data[first : first + BLOCK]), bytes(data[second : second + BLOCK])
    return bytes(_put(_put(data, first, there), second, here))


DAMAGES: tuple[Damage, ...] = (cut, zero_hole, zero_tail, removed, repeated, flipped, overwritten, swapped)


def _place(data: bytearray, rng: random.Random) -> int:
    """Behind the headers, every other time where a packet of a transport stream begins."""
    place = rng.randrange(min(2048, len(data) // 4), len(data))
    return place - place % 188 if rng.random() < 0.5 else place


def _put(data: bytearray, place: int, block: bytes) -> bytearray:
    data[place : place + len(block)] = block[: len(data) - place]
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of MP4s, at any depth")
    parser.add_argument("--container", choices=CONTAINERS, required=True)
    parser.add_argument("--damaged", type=int, default=60, metavar="N", help="how many to make (default 60)")
    parser.add_argument("--sound", type=int, default=20, metavar="N", help="how many to make (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tree", type=Path, help="keep what is made here and in TREE-truth; both must not exist")
    parser.add_argument("--min-sound", type=float, default=0.98, metavar="R", help="of the sound must be right")
    parser.add_argument(
        "--max-wrong", type=float, default=1.0, metavar="R", help="of the damaged may be wrong or short"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bad-remuxes-") as temporary:
        tree = (options.tree or Path(temporary, "tree")).absolute()
        make_tree(options, tree)
        fine = True
        for name, sampling in SAMPLINGS.items():
            verdicts, times = bad_inputs.judge(
                tree, decoder=options.decoder, workers=options.workers, sampling=sampling
            )
            counts = Counter((v.expect, v.verdict) for v in verdicts)
            wrong = (counts["either", "wrong"] + counts["either", "short"]) / max(1, options.damaged)
            right = counts["decode", "right"] / max(1, options.sound)
            late = max(time.over_seconds for time in times)
            print(f"{options.container}, seed {options.seed}, {name}: sound and right {right:.1%}, ", end="")
            print(f"damaged and neither right, refused nor flagged {wrong:.1%}\n{by_kind(verdicts)}", flush=True)
            lost = any(v.verdict in ("lost", "crashed") for v in verdicts)
            fine &= right >= options.min_sound and wrong <= options.max_wrong and late <= GRACE_SECONDS and not lost
    return 0 if fine else 1


def make_tree(options: argparse.Namespace, tree: Path) -> None:
    """Make the videos in folders of `tree` by kind, and the manifest that `bad_inputs.judge` reads."""
    rng = random.Random(options.seed)
    clips = sorted(options.folder.rglob("*.mp4"))
    tree.mkdir(parents=True)
    truths = tree.with_name(f"{tree.name}-truth")
    truths.mkdir()
    rows = []
    for number in range(options.sound + options.damaged):
        encoding = list(ENCODINGS)[number % len(ENCODINGS)]
        truth = truths / f"{number:03d}.mp4"
        sound = tree / f"{number:03d}.{options.container}"
        encode(rng.choice(clips), truth, encoding)
        ffmpeg(
            "-i", truth, "-map", "0", "-c", "copy", "-fflags", "+bitexact", "-f", CONTAINERS[options.container], sound
        )
        data, kind = sound.read_bytes(), f"sound_{encoding}"
        sound.unlink()
        if number >= options.sound:
            damage = DAMAGES[number % len(DAMAGES)]
            data, kind = damage(bytearray(data), rng), damage.__name__
        path = tree / kind / sound.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        frames = len(bad_inputs.true_thumbs(str(truth)))
        expect = "decode" if number < options.sound else "either"
        rows.append(
            {"path_hex": bytes(path).hex(), "cls": kind, "expect": expect, "frames": frames, "ref": True}
            | {"src": str(truth)}
        )
    (tree / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def encode(clip: Path, out: Path, encoding: str) -> None:
    audio = ["-f", "lavfi", "-i", "sine=d=60"] if "-c:a" in ENCODINGS[encoding] else []
    sound = ["-map", "1:a"] if audio else []
    ffmpeg("-i", clip, *audio, "-map", "0:v:0", *sound, *ENCODINGS[encoding], "-fflags", "+bitexact", out)


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=300)


def by_kind(verdicts: list[Verdict]) -> str:
    """Format the verdicts per kind as a table, and list every bad one by name."""
    counts = Counter((v.cls, v.verdict) for v in verdicts)
    lines = [f"{'':20}" + "".join(f"{name:>9}" for name in bad_inputs.VERDICTS)]
    lines += [
        f"{cls:20}" + "".join(f"{counts[cls, name]:9}" for name in bad_inputs.VERDICTS)
        for cls in sorted({v.cls for v in verdicts})
    ]
    lines += [f"  {v.verdict}: {v.path!a}: {v.why}" for v in verdicts if v.is_bad]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
