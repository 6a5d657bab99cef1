"""Kill a process that saves checkpoints over and over, and flip bits in what it wrote: is a checkpoint ever lost?

    python tools/crash_test_checkpoint.py [--kills 100] [--flips 300]

Kills: a child process saves the checkpoints of a run (last.pt and previous.pt), says each number when it is saved, and
is killed by SIGKILL at a random moment; then the run must be loadable, at the number said last or a later one, and the
next child resumes from there. Flips: one bit of a checkpoint file is flipped, at random places; loading it must be
refused, and the run must resume from the previous checkpoint. Exits with 1 when one was lost or one flip went unseen.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from stage1.common.files import LAST_NAME
from stage1.data.transforms import TransformConfig
from stage1.model.checkpoint import Checkpoint, load_checkpoint, load_last, save_last
from stage1.model.network import ModelConfig, Stage1Model
from vidshard.util.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # children are forked, which threads do not survive
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        loadable, in_mid_write = kill_while_saving(Path(folder), arguments.kills, generator)
        refused, recovered = flip_bits(Path(folder), arguments.flips, generator)
    result = {
        "kills": arguments.kills,
        "loadable": loadable,
        "kills_in_mid_write": in_mid_write,
        "flips": arguments.flips,
        "refused": refused,
        "recovered": recovered,
    }
    print(json.dumps(result))
    return 0 if loadable == arguments.kills and refused == recovered == arguments.flips else 1


def make_checkpoint(epoch: int) -> Checkpoint:
    """Return a checkpoint of the default model, as large as that of a run: with the two averages of AdamW."""
    torch.manual_seed(epoch)
    model = Stage1Model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return Checkpoint(
        epoch=epoch,
        step=epoch,
        model_state_dict=model.state_dict(),
        optimizer_state_dict=optimizer.state_dict(),
        scheduler_state_dict={},
        model_config=dataclasses.asdict(ModelConfig()),
        transform_config=dataclasses.asdict(TransformConfig()),
        clip_shape={"num_frames": 16, "height": 112, "width": 112},
        sampling={},
        frame_gap_seconds=0.1,
    )


def save_for_ever(folder: Path, saved: Connection) -> None:
    """Save checkpoints until killed, and say the number of each that is saved."""
    first = load_last(folder)[0].epoch + 1 if any(folder.iterdir()) else 0
    checkpoint = make_checkpoint(first)
    for epoch in itertools.count(first):
        save_last(folder, dataclasses.replace(checkpoint, epoch=epoch))
        saved.send(epoch)


def kill_while_saving(folder: Path, kills: int, generator: random.Random) -> tuple[int, int]:
    """Return how often the run was loadable and lost nothing, and how often a half-written file was left."""
    loadable = in_mid_write = 0
    forked = multiprocessing.get_context("fork")  # importing torch a hundred times takes minutes
    for number in range(1, kills + 1):
        heard, says = forked.Pipe(duplex=False)
        child = forked.Process(target=save_for_ever, args=(folder, says))
        child.start()
        says.close()
        said = heard.recv()
        time.sleep(generator.uniform(0, 0.15))
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                said = heard.recv()
        in_mid_write += (folder / f"{LAST_NAME}.partial").exists()
        try:
            saved, _ = load_last(folder)
            loadable += saved.epoch >= said
        except UserError as error:
            print(f"kill {number}: {error}")
        if number % 10 == 0:
            print(f"{number} kills, {loadable} loadable, {in_mid_write} in mid-write", flush=True)
    return loadable, in_mid_write


def flip_bits(folder: Path, flips: int, generator: random.Random) -> tuple[int, int]:
    """Return how many damaged files were refused, and how often the run resumed from the previous checkpoint."""
    for epoch in (1, 2):
        save_last(folder, make_checkpoint(epoch))
    path = folder / LAST_NAME
    data = path.read_bytes()
    refused = recovered = 0
    for _ in range(flips):
        place = generator.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            print(f"bit {place} of {8 * len(data)} was flipped and not seen")
        except UserError:
            refused += 1
        saved, warning = load_last(folder)
        recovered += saved.epoch == 1 and warning is not None
    return refused, recovered


if __name__ == "__main__":
    sys.exit(main())
