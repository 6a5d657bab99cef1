#!/usr/bin/env python3
"""Contract of the shard format: others' readers give every clip, its shape and its record as they were written.

    python tools/check_readers.py                    # every reader whose package is installed
    python tools/check_readers.py --only ray dali    # some of them

One set of 48 clips in eight shards, in which classes, recordings, flags and a null class appear late: types that a
reader infers from the first clips are then wrong. Each reader runs in a process of its own. Prints a line for each, and
JSON; exits with 1 if one that is installed differs. The packages: `pip install 'vidshard[readers]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import io
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord
from vidshard.shards.manifest import read_manifest
from vidshard.shards.set_writer import ShardSetWriter

CLASSES = [("Abuse", 1, 30), ("Burglary", 1, 8), ("NormalVideos", 0, 6), (None, -1, 4)]  # name, label, clips
SHAPE = (4, 32, 48, 3)
Sample = tuple[str, np.ndarray, dict[str, Any]]  # key, clip, record


def write_set(folder: Path, *, label_member: bool = False) -> None:
    generator = np.random.default_rng(0)
    clip_bytes = int(np.prod(SHAPE))
    number = 0
    with ShardSetWriter(
        folder,
        clip_len=SHAPE[0],
        size=SHAPE[1:3],
        split="Train",
        shard_mb=6 * clip_bytes / 2**20,
        label_member=label_member,
    ) as writer:
        for name, label, count in CLASSES:
            for n in range(count):
                number += 1
                writer.add(
                    generator.integers(0, 256, SHAPE, np.uint8),
                    video=f"{name or 'z'}/{n:03d}.mp4",
                    label=label,
                    class_name=name,
                    recording="late" if number > 35 else None,
                    flags=("damaged",) if number > 40 else (),
                )


def shards_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("shard-*.tar"))]


def written(folder: Path) -> Iterator[Sample]:
    label_member = read_manifest(folder).label_member
    for path in shards_of(folder):
        with open(path, "rb") as file:
            for key, payload, record, _ in layout.read_shard(file, label_member=label_member):
                yield key, np.load(io.BytesIO(payload)), json.loads(record.to_json())


def of_dicts(samples: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    for sample in samples:
        assert sample.get("cls", sample["json"]["label"]) == sample["json"]["label"], sample["__key__"]
        yield sample["__key__"], np.asarray(sample["npy"], np.uint8), sample["json"]


def of_bytes(clip: bytes, record: bytes) -> Sample:
    fields = json.loads(record)
    return SampleRecord.from_json(record).key, np.load(io.BytesIO(clip)), fields


def read_datasets(folder: Path, *, streaming: bool) -> Iterator[Sample]:
    import datasets

    yield from of_dicts(datasets.load_dataset(str(folder), split="train", streaming=streaming))


def webdataset_of(folder: Path) -> Any:
    import webdataset

    return webdataset.WebDataset(shards_of(folder), shardshuffle=False, empty_check=False).decode()


def read_web_loader(folder: Path) -> Iterator[Sample]:
    import webdataset

    yield from of_dicts(webdataset.WebLoader(webdataset_of(folder), batch_size=None, num_workers=2))


def read_ray(folder: Path) -> Iterator[Sample]:
    import ray

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, object_store_memory=1 << 28, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield from of_dicts(ray.data.read_webdataset(shards_of(folder)).iter_rows())
    ray.shutdown()


def read_dali(folder: Path) -> Iterator[Sample]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=8, num_threads=2, device_id=None)
    def pipeline() -> Any:
        return tuple(fn.readers.webdataset(paths=shards_of(folder), ext=["npy", "json"]))

    built = pipeline()
    built.build()
    left = sum(1 for _ in written(folder))
    while left > 0:  # a pipeline begins again at the end, so the count is what it is told to be
        clips, records = built.run()
        for clip, record in list(zip(clips, records, strict=True))[:left]:
            yield of_bytes(bytes(np.asarray(clip)), bytes(np.asarray(record)))
        left -= len(clips)


def read_energon(folder: Path) -> Iterator[Sample]:
    from megatron import energon
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    @dataclasses.dataclass
    class Clip(energon.Sample):  # type: ignore[misc]
        npy: Any
        json: Any

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Clip:
        return Clip(**energon.basic_sample_keys(sample), npy=sample["npy"], json=sample["json"])

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (energon.Cooker(cook),)

        def batch(self, samples: list[Any]) -> Any:
            return samples

    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "set"  # Energon writes its own description into the folder
        shutil.copytree(folder, copy)
        names = [Path(shard).name for shard in shards_of(folder)]
        WebdatasetPreparator.prepare_dataset(
            copy, names, split_parts_ratio=[("val", 1.0)], workers=1, progress_fn=iter_only
        )
        (copy / ".nv-meta" / "dataset.yaml").write_text(
            "__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors: {}\n"
        )
        workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = energon.get_val_dataset(copy, worker_config=workers, batch_size=4, task_encoder=Encoder())
        for batch in energon.get_loader(dataset):
            for sample in batch:
                key = sample.__key__.rpartition("/")[2]  # behind the name of the shard
                yield key, np.asarray(sample.npy, np.uint8), sample.json


def iter_only(items: Iterable[Any], total: int) -> Iterable[Any]:
    return items


def read_stateful(folder: Path) -> Iterator[Sample]:
    """Read 19 clips, then the others with a second loader, from the state of the first."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        return StatefulDataLoader(webdataset_of(folder), batch_size=None, num_workers=2)

    first = loader()
    begun = iter(first)
    yield from of_dicts(next(begun) for _ in range(19))
    state, second = first.state_dict(), loader()
    second.load_state_dict(state)
    yield from of_dicts(second)


def read_lightning(folder: Path) -> Iterator[Sample]:
    import lightning
    import webdataset

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def predict_step(self, sample: dict[str, Any]) -> dict[str, Any]:
            return sample

    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = webdataset.WebLoader(webdataset_of(folder), batch_size=None, num_workers=0)
    yield from of_dicts(trainer.predict(Model(), loader))


def read_accelerate(folder: Path) -> Iterator[Sample]:
    import accelerate
    import torch

    loader = torch.utils.data.DataLoader(webdataset_of(folder), batch_size=None)
    # Otherwise accelerate sends batches from rank 0, which must be tensors alone.
    options = accelerate.DataLoaderConfiguration(dispatch_batches=False)
    yield from of_dicts(accelerate.Accelerator(cpu=True, dataloader_config=options).prepare(loader))


# Name → package, and what reads a folder.
READERS: dict[str, tuple[str, Callable[[Path], Iterable[Sample]]]] = {
    "datasets": ("datasets", lambda folder: read_datasets(folder, streaming=False)),
    "datasets-streaming": ("datasets", lambda folder: read_datasets(folder, streaming=True)),
    "webdataset": ("webdataset", lambda folder: of_dicts(webdataset_of(folder))),
    "webdataset-loader": ("webdataset", read_web_loader),
    "ray": ("ray.data", read_ray),
    "dali": ("nvidia.dali", read_dali),
    "energon": ("megatron.energon", read_energon),
    "torchdata-resumed": ("torchdata", read_stateful),
    "lightning": ("lightning", read_lightning),
    "accelerate": ("accelerate", read_accelerate),
}
DISTRIBUTIONS = {"nvidia.dali": "nvidia-dali-cuda120", "megatron.energon": "megatron-energon", "ray.data": "ray"}


def check(name: str, folder: Path) -> dict[str, Any]:
    """Return the version of a reader, and in what it differs; a reader may return clips in any order."""
    package, read = READERS[name]
    try:
        importlib.import_module(package)
    except ImportError as error:
        return {"missing": str(error)}
    expected = {key: (clip, record) for key, clip, record in written(folder)}
    got = list(read(folder))
    faults = []
    if sorted(key for key, _, _ in got) != sorted(expected):
        faults.append(
            f"{len(got)} clips, {len({key for key, _, _ in got})} of them different, expected {len(expected)}"
        )
    for key, clip, record in got:
        clip_expected, record_expected = expected.get(key, (None, None))
        if clip_expected is None or clip.shape != clip_expected.shape or not np.array_equal(clip, clip_expected):
            faults.append(f"the pixels of {key} differ: {clip.shape}")
        elif record != record_expected:
            names = [name for name in record_expected if record.get(name, "absent") != record_expected[name]]
            faults.append(f"the record of {key} differs in {', '.join(names)}: {[record.get(name) for name in names]}")
    version = importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    return {"version": version, "clips": len(got), "faults": faults}


def check_apart(name: str, folder: Path) -> dict[str, Any]:
    """Check a reader in a process of its own: frameworks change settings of the process, and some never end."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return {"faults": done.stderr.splitlines()[-3:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--label-member", action="store_true", help="Write the set in format version 2.")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # read this one: what the children do
    options = parser.parse_args()
    if options.folder is not None:
        warnings.filterwarnings("ignore")
        print(json.dumps(check(options.only[0], options.folder)))
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        write_set(folder, label_member=options.label_member)
        for name in options.only:
            results[name] = result = check_apart(name, folder)
            if "missing" in result:
                print(f"{name}: skipped, {result['missing']}", flush=True)
                continue
            verdict = "; ".join(result["faults"][:3]) or f"all {result['clips']} clips equal"
            print(f"{name} {result.get('version', '')}: {verdict}", flush=True)
    print(json.dumps(results))
    return int(any(result.get("faults") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
