"""Discovery of videos below a URL, with the same result as for a folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping

from vidshard.shards.layout import UNKNOWN_LABEL
from vidshard.shards.manifest import Failure
from vidshard.sources import folders as sources
from vidshard.sources.folders import HEAD_BYTES, RECORDINGS_NAME, VIDEO_SUFFIXES, Recordings, Source, Video, split_name
from vidshard.storage import urls
from vidshard.storage.urls import ObjectInfo, Url
from vidshard.util.errors import UserError
from vidshard.util.lists import SHOWN_SUFFIXES
from vidshard.util.text import counted, path_bytes

Listing = Mapping[str, ObjectInfo]  # name relative to a URL → size and version


def find_remote_sources(url: Url, *, normal: str | None = None, leave_out: Iterable[Url] = ()) -> list[Source]:
    """Find the videos below a URL, or the one video that it names; like `folders.find_sources`."""
    listing = urls.list_files(url)
    if not listing:
        return [_single_video(url)]
    root = f"{url.as_posix()}/"
    outputs = [path.removeprefix(root) for out in leave_out if (path := out.as_posix()).startswith(root)]
    listing = {name: about for name, about in listing.items() if not _is_below(name, outputs)}
    splits = _split_folders(url, listing)
    if not splits:
        return [_find_source(url, split_name(url.name), listing, normal, _outer_recordings(url, listing))]
    found = []
    for split, folder in sorted(splits.items()):
        below = {name[len(folder) + 1 :]: about for name, about in listing.items() if name.startswith(f"{folder}/")}
        recordings = _recordings(url, f"{folder}/") if RECORDINGS_NAME in listing else Recordings()
        found.append(_find_source(url / folder, split, below, normal, recordings))
    return found


def _single_video(url: Url) -> Source:
    try:
        about = urls.info(url)
    except urls.NotThereError as error:
        raise UserError(f"nothing at {url}; expected SOURCE/<Class>/*.mp4, videos, or one video") from error
    if sources.why_no_video(url.name, functools.partial(urls.read_head, url, HEAD_BYTES)) is not None:
        raise UserError(f"{url} is not a video name; expected a name that ends in {SHOWN_SUFFIXES}")
    video = Video(path=url.name, class_name=None, label=UNKNOWN_LABEL, num_bytes=about.size, version=about.version)
    return Source(root=url.parent, split=None, videos=(video,), skipped=())


def _split_folders(url: Url, listing: Listing) -> dict[str, str]:
    """Return split → name of its folder, {} if there is none. Raises UserError on videos outside the splits."""
    splits: dict[str, str] = {}
    for folder in sorted({name.partition("/")[0] for name in listing if "/" in name}, key=path_bytes):
        split = split_name(folder)
        if split is not None:
            if split in splits:
                raise UserError(
                    f"{url} contains {splits[split]}/ and {folder}/, which are the same split; build them separately"
                )
            splits[split] = folder
    outside = [name for name in sorted(listing) if splits and not _is_below(name, splits.values())]
    videos = [name for name in outside if _is_video(url, name)]
    if videos:
        raise UserError(
            f"{url} contains {', '.join(sorted(splits.values()))} and {counted(len(videos), 'video')} outside them "
            f"({videos[0]}); move those into a split, or build each separately"
        )
    return splits


def _find_source(url: Url, split: str | None, listing: Listing, normal: str | None, recordings: Recordings) -> Source:
    videos: list[str] = []
    by_content: list[str] = []  # the videos without a video name
    skipped: dict[str, Failure] = {}
    recordings = _recordings(url, "") if RECORDINGS_NAME in listing else recordings

    def skip(path: str, reason: str, message: str) -> None:
        skipped.setdefault(path, Failure(path=path, outcome="skipped", reason=reason, message=message))

    for name in listing:
        if name == RECORDINGS_NAME:
            continue
        parts = name.split("/")
        hidden = next((number for number, part in enumerate(parts) if part.startswith(".")), None)
        read_head = functools.partial(urls.read_head, url / name, HEAD_BYTES)
        try:
            if hidden is not None and hidden < len(parts) - 1:
                skip("/".join(parts[: hidden + 1]), *sources.HIDDEN)
            elif hidden is not None and not sources.is_hidden_video(parts[hidden], read_head):
                skip(name, *sources.HIDDEN)
            elif (no_video := sources.why_no_video(name, read_head)) is not None:
                skip(name, *no_video)
            else:
                videos.append(name)
                by_content += [] if name.lower().endswith(VIDEO_SUFFIXES) else [name]
        except urls.StorageError:
            skip(name, "unreadable", "it could not be read to check whether it is a video; run the same command again")
    notes = sources.by_content_note(by_content)
    source = sources.make_source(
        url, split, videos, list(skipped.values()), recordings=recordings, normal=normal, notes=notes
    )
    videos_with_versions = [
        dataclasses.replace(video, num_bytes=listing[video.path].size, version=listing[video.path].version)
        for video in source.videos
    ]
    return dataclasses.replace(source, videos=tuple(videos_with_versions))


def _outer_recordings(url: Url, listing: Listing) -> Recordings:
    """Return the content of the `sources.json` next to a split folder."""
    parent = url.parent
    if RECORDINGS_NAME in listing or split_name(url.name) is None or not urls.exists(parent / RECORDINGS_NAME):
        return Recordings()
    return _recordings(parent, f"{url.name}/")


def _recordings(url: Url, prefix: str) -> Recordings:
    path = url / RECORDINGS_NAME
    text = urls.read_bytes(path).decode("utf-8-sig", "replace")
    return Recordings.from_text(text, where=str(path), prefix=prefix)


def _is_video(url: Url, name: str) -> bool:
    if any(part.startswith(".") for part in name.split("/")) or name == RECORDINGS_NAME:
        return False
    return sources.why_no_video(name, functools.partial(urls.read_head, url / name, HEAD_BYTES)) is None


def _is_below(name: str, folders: Collection[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)
