"""Dataset card: README.md of a shard folder, for people and for `load_dataset` of Hugging Face's datasets.

The card names the type of every field. Without it, `load_dataset` infers types from the first clips and fails if a rare
field, such as a flag, comes late.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vidshard.shards import layout
from vidshard.shards.manifest import Manifest
from vidshard.util import atomic

_MARK = "# Every build writes this file again. Remove this line to keep your changes.\n"
# Fields of a record → type, as datasets names it.
_RECORD = {
    **dict.fromkeys(("class", "decoder", "path", "source_group", "split"), "dtype: string"),
    **dict.fromkeys(("clip_index", "label", "num_frames", "repeated_frames"), "dtype: int64"),
    **dict.fromkeys(("fps", "frame_gap_seconds"), "dtype: float64"),
    **{"flags": "list: string", "frame_indices": "list: int64", "timestamps_seconds": "list: float64"},
}


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card of a set into `folder`, unless there is one that someone wants to keep."""
    if is_replaceable(folder):
        atomic.write_text(folder / layout.CARD_NAME, dataset_card(manifest))


def is_replaceable(folder: Path) -> bool:
    """Return True if `folder` has no card, or one that `write_card` may replace."""
    path = folder / layout.CARD_NAME
    return not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace")


def dataset_card(manifest: Manifest) -> str:
    """Return the card: the types of all fields as YAML, then the contents as Markdown."""
    shape = ", ".join(map(str, manifest.clip_shape.thwc))
    pixels = {
        "raw": f"    dtype:\n      array4_d:\n        dtype: uint8\n        shape: [{shape}]\n",
        "zstd": "    dtype: binary\n",
        "jpeg": "    dtype: image\n",
    }[manifest.codec]
    record = "".join(f"    - name: {name}\n      {kind}\n" for name, kind in sorted(_RECORD.items()))
    label = "  - name: cls\n    dtype: int64\n" if manifest.label_member else ""
    classes = "".join(
        f"| {_cell(row.name or '(no class)')} | {row.label} | {row.videos:,} | {row.clips:,} |\n"
        for row in manifest.classes
    )
    videos = ", ".join(f"{count:,} {outcome}" for outcome, count in manifest.videos.items())
    return f"""---
{_MARK}configs:
- config_name: default
  data_files: "shard-*.tar"
dataset_info:
  features:
  - name: {layout.CODEC_SUFFIX[manifest.codec].removeprefix(".")}
{pixels}  - name: json
    struct:
{record}{label}  - name: __key__
    dtype: string
  - name: __url__
    dtype: string
---

# Clips of surveillance videos

{manifest.num_clips:,} clips of {manifest.clip_shape} (frames × height × width, RGB) in {len(manifest.shards):,} shards
for WebDataset, written by `vidshard build`. Split: {_cell(manifest.split or "none")}. Videos: {videos}.

| class | label | videos | clips |
|---|---|---|---|
{classes}
Labels: 0 normal, 1 crime, -1 unknown. Digest: `{manifest.digest}`.

```python
datasets.load_dataset("FOLDER", split="train")  # or streaming=True
stage1.ClipReader("FOLDER")
```

Settings of the build:

```json
{json.dumps(manifest.settings, indent=1, sort_keys=True)}
```

The videos keep their own licence.
"""


def _cell(text: str) -> str:
    """Return a name as text in one line: no markup, no end of a cell."""
    return re.sub(r"([\\|<\[`])", r"\\\1", text).replace("\r", " ").replace("\n", " ")
