"""Paths and URLs of files and folders. Pure functions; `vidshard.storage` reads and writes what URLs name."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")  # also of chains, as `simplecache::s3://…`, which are refused


class Url:
    """The URL of an object, or the common prefix of all objects "below" it, since stores have no folders.

    >>> Url("s3://bucket/Train/") / "Abuse/a.mp4"
    s3://bucket/Train/Abuse/a.mp4
    >>> Url("https://me:secret@host/a.mp4?Signature=abc")
    https://host/a.mp4?…
    """

    def __init__(self, full: str) -> None:
        self.full = full  # as given: may contain credentials

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.full == other.full

    def __hash__(self) -> int:
        return hash(self.full)

    @property
    def scheme(self) -> str:
        return self.full.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def name(self) -> str:
        name = self.as_posix().partition("://")[2].rpartition("/")[2]
        return unquote(name) if self.is_web else name

    @property
    def parent(self) -> Url:
        """The URL of the containing folder; a bucket or host is its own parent."""
        base, mark, query = self.full.partition("?") if self.is_web else (self.full, "", "")
        scheme, _, rest = base.rstrip("/").partition("://")
        return Url(f"{scheme}://{rest.rpartition('/')[0]}{mark}{query}") if "/" in rest else self

    def as_posix(self) -> str:
        """Return the URL without query, user and trailing slash: it identifies the object without credentials."""
        return redact_credentials(self.full).removesuffix("?…").removesuffix(";…").rstrip("/")

    def __truediv__(self, name: str) -> Url:
        base, mark, query = self.full.partition("?") if self.is_web else (self.full, "", "")
        return Url(f"{base.rstrip('/')}/{quote(name) if self.is_web else name}{mark}{query}")

    def __str__(self) -> str:
        return redact_credentials(self.full)

    __repr__ = __str__


Location = Path | Url


def is_url(text: str) -> bool:
    """Return True if `text` is a URL and not a path.

    >>> is_url("s3://bucket/a"), is_url("simplecache::s3://bucket/a"), is_url("shards/a")
    (True, True, False)
    """
    return _URL.match(text) is not None


def location(text: str | os.PathLike[str] | Url) -> Location:
    """Convert `text` to a Url if it is one, else to a Path; `file://` gives a Path.

    >>> location("shards/Train"), location("s3://bucket/shards"), location("file:///data/Train")
    (PosixPath('shards/Train'), s3://bucket/shards, PosixPath('/data/Train'))
    """
    if not isinstance(text, str) or not is_url(text):
        return text if isinstance(text, Url) else Path(text)
    return Path(text.removeprefix("file://")) if text.startswith("file://") else Url(text)


def redact_credentials(text: str) -> str:
    """Remove query, parameters and user from every URL in `text`.

    >>> redact_credentials("503 for https://key:secret@host/a.mp4?X-Amz-Signature=abc, tried twice")
    '503 for https://host/a.mp4?…, tried twice'
    >>> redact_credentials("s3://KEY:sec/ret@bucket/a.tar or https://me:p@ss@host:80/a@b.mp4;sig=abc")
    's3://bucket/a.tar or https://host:80/a@b.mp4;…'
    """
    text = re.sub(r"(://)[^/\s'\"]*@", r"\1", text)
    text = re.sub(
        r"(://)[^/\s:'\"]+:(?!\d+(?:/|$))[^\s'\"]*@", r"\1", text
    )  # a slash in the password, which is no port
    text = re.sub(r"(://[^\s?'\";]*);\w+=[^\s'\",)]*", r"\1;…", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\",)]*", r"\1?…", text)


def local_name(url: Url) -> str:
    """Return a file name that is unique to the URL.

    >>> local_name(Url("s3://bucket/shards/Train"))
    's3-bucket-shards-Train-7a420331'
    """
    words = re.sub(r"[^A-Za-z0-9_]+", "-", url.as_posix()).strip("-")
    return f"{words[-60:].lstrip('-')}-{hashlib.sha256(url.as_posix().encode()).hexdigest()[:8]}"
