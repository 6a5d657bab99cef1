"""Read speed of shards behind a URL, compared with the same shards in a folder.

    python tools/bench_object_store.py

Makes clips, puts them into an S3 server on the loopback device (moto), and reads whole shuffled epochs by turns: from
the folder, and through the cache. The first epoch downloads; the ratio is that of the epochs after it. Prints one line
of JSON at the end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from fake_shards import random_clips, write_shards  # noqa: E402
from stage1.data.loader import ClipLoader, ClipReader  # noqa: E402
from vidshard.building import upload  # noqa: E402
from vidshard.storage.cache import CacheConfig  # noqa: E402
from vidshard.storage.urls import Url  # noqa: E402


def read_epochs(loader: ClipLoader, number: int) -> tuple[float, float]:
    """Clips per second of some epochs; and per second of processor time, which others at work disturb less."""
    start, start_cpu, count = time.perf_counter(), time.process_time(), 0
    for _ in range(number):
        for clips, _, _ in loader:
            count += len(clips)
    return count / (time.perf_counter() - start), count / (time.process_time() - start_cpu)


def start_server() -> None:
    """Start an S3 server in this process and point the environment to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    import boto3

    boto3.client("s3").create_bucket(Bucket="bench")


@click.command()
@click.option("--clips", default=500, show_default=True, help="Of 16 frames of 112×112.")
@click.option("--turns", default=11, show_default=True, help="Measurements of each kind after the first epoch.")
@click.option("--epochs", default=20, show_default=True, help="Of one measurement.")
@click.option("--batch-size", default=32, show_default=True)
def main(clips: int, turns: int, epochs: int, batch_size: int) -> None:
    """Read epochs alternately from a folder and through the cache."""
    start_server()
    with tempfile.TemporaryDirectory() as folder:
        local = write_shards(
            Path(folder, "local"), random_clips(clips, shape=(16, 112, 112)), [0] * clips, clips_per_shard=50
        )
        (local / "failures.csv").write_text("path,outcome,reason,message\n")
        url = Url("s3://bench/set")
        upload.upload_set(local, url)
        readers = {
            "local": ClipReader(local),
            "remote": ClipReader(url, cache=CacheConfig(folder=Path(folder, "cache"), limit_gb=10)),
        }
        loaders = {
            name: ClipLoader(reader, batch_size=batch_size, shuffle=True, num_threads=1)
            for name, reader in readers.items()
        }
        first = {name: read_epochs(loader, 1)[0] for name, loader in loaders.items()}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
        for turn in range(turns):
            for name in sorted(loaders, reverse=turn % 2 == 1):
                rates[name].append(read_epochs(loaders[name], epochs))
                print(f"turn {turn}: {name} {rates[name][-1][0]:,.0f} clips/s", file=sys.stderr)
    result: dict[str, object] = {"first_epoch_clips_per_second": {name: round(rate) for name, rate in first.items()}}
    for place, what in enumerate(("wall", "processor")):
        medians = {name: statistics.median(rate[place] for rate in values) for name, values in rates.items()}
        result[f"ratio_after_first_epoch_{what}"] = round(medians["remote"] / medians["local"], 3)
        result[f"clips_per_{what}_second"] = {name: round(median) for name, median in medians.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
