"""Builds from and to URLs: the same bytes as on the disk, whole objects only, the manifest last."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from builds import OPTIONS, SameProcess, digests
from object_store import CREDENTIALS, ObjectStore, running_store, use_store
from stage1.data.reader import ClipReader
from tiny_videos import make_broken_video, make_tiny_video, make_tiny_videos
from vidshard.building import fetched_video, worker
from vidshard.building.worker import ProbeJob
from vidshard.cli.main import main
from vidshard.shards import remote_set
from vidshard.sources import folders, urls
from vidshard.storage import urls as storage
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Url

VIDEOS = {"Abuse/a.mp4": 12, "Abuse/b.mp4": 12, "NormalVideos/n.mp4": 8}


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    return use_store(server, monkeypatch)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def build(source: str | Path, out: str | Path, *more: str | Path) -> Result:
    return run("build", source, "--out", out, "--workers", "1", *OPTIONS, *more)


def remote_digests(store: ObjectStore, prefix: str) -> dict[str, str]:
    import hashlib

    names = store.names(f"{prefix}/")
    return {name.removeprefix(f"{prefix}/"): hashlib.sha256(store.get(name)).hexdigest() for name in names}


def test_from_and_to_a_store_it_is_the_same_byte_for_byte(store: ObjectStore, tmp_path: Path) -> None:
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    make_broken_video(local / "Abuse" / "broken.mp4")
    (local / "notes.txt").write_text("no video")
    store.put_folder(local, "data/Train")
    assert build(local, "expected").exit_code == 2
    result = build("s3://bucket/data/Train", "s3://bucket/shards/Train")
    assert result.exit_code == 2, result.output
    assert "✓ s3://bucket/shards/Train" in result.output
    assert remote_digests(store, "shards/Train") == digests(tmp_path / "expected")
    written = [name for method, name in store.log if method == "PUT"]
    assert written[-1] == "shards/Train/manifest.json"
    assert not Path("shards.staging", storage.local_name(Url("s3://bucket/shards/Train"))).exists()
    assert not list(fetched_video.fetch_folder().iterdir())

    result = build("s3://bucket/data/Train", "s3://bucket/shards/Train")
    assert "finished before, nothing to do" in result.output
    assert run("verify", "s3://bucket/shards/Train", "--deep").exit_code == 0
    shown = run("inspect", "s3://bucket/shards/Train", "--json")
    assert json.loads(shown.output)["videos"] == {"found": 5, "ok": 3, "failed": 1, "skipped": 1}
    refused = build(local, "s3://bucket/shards/Train", "--seed", "1")
    assert refused.exit_code == 1
    assert "s3://bucket/shards/Train contains a different build, with other settings (seed 0, now 1)" in refused.stderr


@pytest.mark.slow
def test_an_interrupted_upload_resumes(store: ObjectStore, tmp_path: Path) -> None:
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    assert build(local, "expected").exit_code == 0
    store.put_faults = {"cut/index.npz": ["503"] * 99}
    result = build(local, "s3://bucket/cut")
    assert result.exit_code == 1
    assert "error: s3://bucket/cut/index.npz could not be written in 6 tries" in result.stderr
    assert "cut/manifest.json" not in store.names("cut/")
    assert run("verify", "s3://bucket/cut").exit_code == 1
    before = dict(store.puts)
    store.put_faults = {"cut/index.npz": ["503", "503"]}
    assert build(local, "s3://bucket/cut").exit_code == 0
    assert remote_digests(store, "cut") == digests(tmp_path / "expected")
    assert store.puts["cut/shard-000000.tar"] == before["cut/shard-000000.tar"] == 1


def test_a_set_that_was_built_before_is_sent(store: ObjectStore, tmp_path: Path) -> None:
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    assert build(local, "built").exit_code == 0
    result = build(local, "s3://bucket/sent", "--staging", "built")
    assert result.exit_code == 0, result.output
    assert "5 objects uploaded, 0 unchanged" in result.output
    assert remote_digests(store, "sent") == digests(Path("built"))  # which stays: the user named it


@pytest.mark.slow
def test_a_finished_set_is_extended_and_repaired(store: ObjectStore, tmp_path: Path) -> None:
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    make_broken_video(local / "Abuse" / "broken.mp4")
    assert build(local, "expected").exit_code == 2
    assert build(local, "s3://bucket/set").exit_code == 2
    for change in ("--extend", "--retry-failed"):
        if change == "--extend":
            make_tiny_video(local / "Abuse" / "0.mp4", 8)
        else:
            make_tiny_video(local / "Abuse" / "broken.mp4", 8)
        store.puts.clear()
        results = [build(local, out, change) for out in ("expected", "s3://bucket/set")]
        assert results[0].exit_code == results[1].exit_code, results[1].output
        assert remote_digests(store, "set") == digests(tmp_path / "expected"), change
        if change == "--extend":
            assert "set/shard-000000.tar" not in store.puts
    assert run("verify", "s3://bucket/set", "--deep").exit_code == 0


def test_every_damage_at_a_url_is_named(store: ObjectStore, tmp_path: Path) -> None:
    assert build(make_tiny_videos(tmp_path / "Train", VIDEOS), "s3://bucket/hurt").exit_code == 0
    data = bytearray(store.get("hurt/shard-000000.tar"))
    data[1000] ^= 1
    store.put("hurt/shard-000000.tar", bytes(data))
    store.client().delete_object(Bucket="bucket", Key="hurt/failures.csv")
    store.put("hurt/other.txt", b"what")
    result = run("verify", "s3://bucket/hurt", "--strict")
    assert result.exit_code == 1
    assert "shard-000000.tar: was changed after it was written" in result.output
    assert "failures.csv: is missing" in result.output
    assert "other.txt: does not belong to this set" in result.output
    store.client().delete_object(Bucket="bucket", Key="hurt/shard-000000.tar")
    assert "shard-000000.tar: is missing; 8 samples are lost" in run("verify", "s3://bucket/hurt").output
    refused = build(tmp_path / "Train", "s3://bucket/hurt")
    assert "s3://bucket/hurt contains other objects (other.txt)" in refused.stderr


def test_videos_that_cannot_be_fetched_fail_with_a_reason(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidshard.execution.local.Supervisor", SameProcess)  # which sees the short pauses between tries
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    store.put_folder(local, "faulty/Train")
    store.faults = {"Abuse/a.mp4": ["503"] * 99, "Abuse/b.mp4": ["503", "cut", "503"]}
    result = run(
        *("build", "s3://bucket/faulty/Train", "--out", "out", "--workers", "1", *OPTIONS),
    )
    assert result.exit_code == 2, result.output
    failures = Path("out", "failures.csv").read_text().splitlines()
    assert failures[1:] == [
        'Abuse/a.mp4,failed,not_downloaded,"it could not be downloaded, even after retries; check the store, '
        'then build with `retry_failed`"'
    ]
    assert not list(fetched_video.fetch_folder().iterdir())
    store.faults = {}
    assert run("build", "s3://bucket/faulty/Train", "--out", "out", *OPTIONS, "--retry-failed").exit_code == 0
    assert build(local, "expected").exit_code == 0
    assert digests(Path("out")) == digests(Path("expected"))


def test_a_store_lists_the_content_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("Train/Abuse/a.mp4", "Train/NormalVideos/deep/b b#ü.MP4", "Train/.hidden/c.mp4", "Train/x.txt"):
        make_broken_video(root / name)
    make_broken_video(root / "Test" / "Abuse" / ".d.mp4")
    for name in ("Train/Abuse/recorder-0001", "Train/Abuse/.e.mp4", "Train/Abuse/sound.m4a"):
        (root / name).write_bytes(b"\0\0\0\x1cftypisom")
    (root / "Train" / "app.ts").write_text("export default 1")
    make_broken_video(root / "Test" / "NormalVideos" / "e.mov")
    (root / "sources.json").write_text(json.dumps([{"file": "Train/Abuse/a.mp4", "source": "recording 7"}]))
    url = memory_copy(root)
    here, there = folders.find_sources(root), urls.find_remote_sources(url)
    assert [source.split for source in here] == [source.split for source in there] == ["Test", "Train"]
    for one, other in zip(here, there, strict=True):
        assert one.skipped == other.skipped
        assert [note.replace(str(root), str(url)) for note in one.notes] == list(other.notes)
        pairs = list(zip(one.videos, other.videos, strict=True))
        assert all(a.path == b.path and a.label == b.label and a.recording == b.recording for a, b in pairs)
        assert all((one.root / a.path).stat().st_size == b.num_bytes for a, b in pairs)
    outer = urls.find_remote_sources(url / "Train")[0]
    assert outer.split == "Train"
    assert {video.path: video.recording for video in outer.videos}["Abuse/a.mp4"] == "recording 7"
    assert "Abuse/recorder-0001" in [video.path for video in outer.videos]
    with pytest.raises(storage.UserError, match=rf"did you mean {url / 'Train'}\?"):
        folders.check_no_class_folder(url / "Train/Abuse", urls.find_remote_sources(url / "Train/Abuse"))
    with pytest.raises(storage.UserError, match="contains videos, not shards; build shards first"):
        remote_set.read_manifest(url / "Train")
    single = urls.find_remote_sources(url / "Train/Abuse/a.mp4")[0]
    assert [video.path for video in single.videos] == ["a.mp4"]
    shutil.copytree(root / "Test", root / "testing")
    with pytest.raises(storage.UserError, match="the same split"):
        urls.find_remote_sources(memory_copy(root))
    with pytest.raises(storage.UserError, match="nothing at memory://"):
        urls.find_remote_sources(Url("memory://nowhere"))


def memory_copy(folder: Path) -> Url:
    url = Url(f"memory://{uuid.uuid4().hex}")
    fsspec.filesystem("memory").put(str(folder) + "/", url.full + "/", recursive=True)
    return url


@pytest.mark.usefixtures("store")
def test_any_store_will_do(tmp_path: Path) -> None:
    """memory:// has neither checksums nor metadata: what is there is read back."""
    local = make_tiny_videos(tmp_path / "Train", VIDEOS)
    out = f"memory://{uuid.uuid4().hex}/Train"
    assert build(local, out).exit_code == 0
    assert build(local, "expected").exit_code == 0
    assert run("verify", out).exit_code == 0
    reader = ClipReader(Url(out), cache=CacheConfig(folder=tmp_path / "cache"))
    assert reader.digest == ClipReader(Path("expected")).digest
    assert (reader[3] == ClipReader(Path("expected"))[3]).all()


@pytest.mark.usefixtures("store")
def test_wrong_use(tmp_path: Path) -> None:
    local = make_tiny_videos(tmp_path / "Train", {"Abuse/a.mp4": 8, "NormalVideos/n.mp4": 8})
    for words, message in (
        ((local, "https://host/shards"), "https://host/shards cannot be written to: https:// is read-only"),
        ((local, "nonsense://x"), "nonsense://x has an unsupported scheme"),
        ((local, "local://x"), "local://x has an unsupported scheme"),  # fsspec would open a path of this machine
        ((local, "simplecache::s3://x/y"), "simplecache::s3://x/y has an unsupported scheme"),
        (("s3://bucket/empty", "out"), "nothing at s3://bucket/empty"),
        (("s3://no-such-bucket/x", "out"), "nothing at s3://no-such-bucket/x"),
    ):
        result = build(*words)
        assert (result.exit_code, message in result.stderr) == (1, True), result.output
        assert len(result.stderr.splitlines()) == 1


def test_no_secret_is_written(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = make_tiny_videos(tmp_path / "Train", {"Abuse/a.mp4": 8, "NormalVideos/n.mp4": 8})
    store.put_folder(local, "secret/Train")
    signed = "https://127.0.0.1:1/Train/a.mp4?X-Amz-Signature=5ecre7"
    monkeypatch.setattr("sys.argv", ["vidshard", "build", signed])
    assert build("s3://bucket/secret/Train", "out").exit_code == 0
    assert build(signed, "out2").exit_code == 1
    text = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".mp4")
    assert not [word for word in ("5ecre7", *CREDENTIALS.values()) if word.encode() in text]


def test_leftovers_of_a_killed_worker_are_removed(store: ObjectStore, tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 8)
    store.put("one/a.mp4", (tmp_path / "a.mp4").read_bytes())
    left = fetched_video.fetch_folder() / "left.mp4"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with fetched_video.local_file(Url("s3://bucket/one/a.mp4")) as path:
        assert path.read_bytes() == (tmp_path / "a.mp4").read_bytes()
        assert not left.exists()
        with fetched_video.local_file(Url("s3://bucket/one/a.mp4")):
            assert path.exists()  # another worker does not take it away
    assert not path.exists()


@pytest.mark.skipif(os.name == "nt", reason="no such device")
def test_a_full_disk_is_not_the_fault_of_the_video(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("full/a.mp4", b"x" * 100)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "download", full)
    from vidshard.video.sampling import SamplingConfig

    job = ProbeJob(video_path=Url("s3://bucket/full/a.mp4"), table_path=tmp_path / "a", sampling=SamplingConfig())
    with pytest.raises(OSError, match="No space left"):
        worker.probe_video(job)
