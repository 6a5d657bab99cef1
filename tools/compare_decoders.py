"""Build the same videos with every decoder and compare all frames.

    python tools/compare_decoders.py SOURCE [--decoders decord opencv pyav] [--workers 2]
    python tools/compare_decoders.py --sets FOLDER FOLDER …   # built before, such as by decord and by decord2

SOURCE is what `vidshard build` takes. Each decoder builds every frame of every video, dense, at 112×112, into a folder
for temporary files; then each pair of sets is read side by side. Printed: the lowest and the mean PSNR of the frames
of each pair; the last line is JSON. Exit code 1 where a video was built by some decoders only, a frame is below 35 dB,
or the mean of a pair is below 37 dB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard import BuildConfig, SamplingConfig, build
from vidshard.shards.layout import decode_clip, read_shard
from vidshard.shards.manifest import open_shards
from vidshard.video.decoders import LIBRARIES

Pictures = npt.NDArray[np.uint8]  # (T, H, W, 3) RGB

LOWEST_DB, MEAN_DB = 35.0, 37.0
SAME_DB = 99.0  # counted for two equal frames, whose PSNR is infinite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", type=Path, help="built with the same options, `--sampling dense`")
    parser.add_argument("--decoders", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    if (options.source is None) == (options.sets is None):
        parser.error("give either SOURCE or --sets")
    with tempfile.TemporaryDirectory(prefix="compare-decoders-") as temporary:
        if options.sets:
            folders = {str(folder): sets_in(folder) for folder in options.sets}
        else:
            places = {name: Path(temporary, name) for name in options.decoders}
            folders = {name: build_all(options.source, place, name, options) for name, place in places.items()}
        figures = compare(folders)
    print(json.dumps(figures))
    good = all(pair["lowest_db"] >= LOWEST_DB and pair["mean_db"] >= MEAN_DB for pair in figures["pairs"].values())
    return 0 if good and not figures["differently_built"] else 1


def build_all(source: Path, out: Path, decoder: str, options: argparse.Namespace) -> list[Path]:
    sampling = SamplingConfig(mode="dense")
    report = build(
        BuildConfig(source=source, out=out, sampling=sampling, decoder=decoder, workers=options.workers, yes=True)
    )
    print(f"{decoder}: {report.videos}", flush=True)
    return report.folders


def sets_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a set, else the sets in it."""
    return (
        [folder] if (folder / "manifest.json").is_file() else sorted(p.parent for p in folder.glob("*/manifest.json"))
    )


def compare(folders: dict[str, list[Path]]) -> dict[str, Any]:
    """Compute the PSNR of each pair of decoders over all frames, and list the videos that some failed to build."""
    built = {
        name: {(number, path) for number, folder in enumerate(sets) for path in open_shards(folder).index.paths}
        for name, sets in folders.items()
    }
    common = set.intersection(*built.values())
    decibels: dict[str, list[npt.NDArray[np.float64]]] = {f"{a}/{b}": [] for a, b in itertools.combinations(folders, 2)}
    num_frames = 0
    for clips in zip(*(frames_of(folders[name], common) for name in folders), strict=True):
        assert len({where for where, _ in clips}) == 1, f"the sets differ in order: {[where for where, _ in clips]}"
        pictures = dict(zip(folders, (new for _, new in clips), strict=True))
        num_frames += len(clips[0][1])
        for a, b in itertools.combinations(folders, 2):
            decibels[f"{a}/{b}"].append(psnr(pictures[a], pictures[b]))
    pairs = {}
    for name, arrays in decibels.items():
        of_frames = np.concatenate(arrays)
        pairs[name] = {"lowest_db": round(float(of_frames.min()), 1), "mean_db": round(float(of_frames.mean()), 1)}
        print(f"{name:<16} lowest {pairs[name]['lowest_db']} dB, mean {pairs[name]['mean_db']} dB", flush=True)
    differently = sorted(path for _, path in set.union(*built.values()) - common)
    return {"videos": len(common), "frames": num_frames, "pairs": pairs, "differently_built": differently}


def frames_of(
    folders: list[Path], videos: set[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str, tuple[int, ...]], Pictures]]:
    """Of each clip of these videos its place and its frames, those left out that the clip before held too."""
    for number, folder in enumerate(folders):
        shards = open_shards(folder)
        last = ("", -1)  # windows at the end of a video overlap
        for shard in shards.manifest.shards:
            with open(folder / shard.name, "rb") as file:
                for key, payload, record, _ in read_shard(file):
                    if (number, record.path) not in videos:
                        continue
                    clip = decode_clip(payload, shards.manifest.clip_shape, where=key)
                    known = last[1] if record.path == last[0] else -1
                    new = [place for place, index in enumerate(record.frame_indices) if index > known]
                    new = [p for p in new if p == 0 or record.frame_indices[p] != record.frame_indices[p - 1]]
                    last = (record.path, record.frame_indices[-1])
                    yield (number, record.path, tuple(record.frame_indices)), clip[new]


def psnr(one: Pictures, other: Pictures) -> npt.NDArray[np.float64]:
    """Peak signal to noise ratio of each frame of two clips (T, H, W, 3), dB."""
    difference = one.astype(np.float32) - other.astype(np.float32)
    error = np.mean(difference * difference, axis=(1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * (2 * math.log10(255) - np.log10(error)), SAME_DB)


if __name__ == "__main__":
    sys.exit(main())
