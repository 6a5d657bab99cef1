"""The command to run next on a finished shard set."""

from __future__ import annotations

from pathlib import Path

from vidshard.storage.urls import Location


def next_step(command: str, place: Location) -> tuple[object, ...]:
    """Return the words of the command to run after `command` on the set at `place`."""
    from vidshard.shards import layout, manifest

    if not isinstance(place, Path):
        return ("vidshard", "verify" if command == "inspect" else "inspect", place)
    about = manifest.open_shards(place).manifest
    train, validation = place.parent / "Train", place.parent / "Validation"
    if about.split == "Validation" and (train / layout.MANIFEST_NAME).is_file():
        return ("stage1", "train", "--shards", train, "--val-shards", place)
    labels = {count.label for count in about.classes if count.clips}
    if about.split in ("Train", None) and labels == {layout.NORMAL_LABEL, layout.CRIME_LABEL}:
        has_validation = place.name == "Train" and (validation / layout.MANIFEST_NAME).is_file()
        return ("stage1", "train", "--shards", place, *(("--val-shards", validation) if has_validation else ()))
    return ("vidshard", "verify" if command == "preview" else "preview", place)
