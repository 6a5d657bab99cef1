"""Options of the preview page. Does not import NumPy, because --help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidshard.util.errors import UserError
from vidshard.util.options import check_options, option

PREVIEW_NAME = "preview.html"


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Options of the preview of a shard folder."""

    folder: Path = option(argument=True, metavar="DIR")
    out: Path | None = option(None, help="HTML page to write.", default_text=f"{PREVIEW_NAME} in DIR.log/")
    clips_per_class: int = option(24, help="Number of thumbnails per class.", at_least=1)
    seed: int = option(0, help="Random seed for selecting the clips.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.out is not None and self.out.is_dir():
            raise UserError(f"out {self.out} is a folder, expected a file name, such as {self.out / PREVIEW_NAME}")
        if self.out is not None and self.folder.resolve() in self.out.resolve().parents:
            raise UserError(
                f"out {self.out} is inside the shard folder, which must contain nothing else; choose another out"
            )

    @property
    def path(self) -> Path:
        from vidshard.shards import manifest

        return self.out if self.out is not None else manifest.log_folder(self.folder) / PREVIEW_NAME
