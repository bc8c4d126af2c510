"""Roots behind URLs: a real S3 server on loopback, a bounded cache, errors that pass and errors that stay."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cirkd_ray.data import build_dataset
from cirkd_ray.data.cache import DiskCache
from cirkd_ray.data.loader import train_loader
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.storage import LocalStorage, RemoteStorage, open_storage
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.data_tools.prepare import Encoding, prepare, verify_prepared
from cirkd_ray.errors import ConfigError, DataError, TransientError
from tests.errors import refuses
from tests.unit.test_data_sets import make_folder

fsspec = pytest.importorskip("fsspec")
NAMES = {"train/x": 0, "train/sub folder/ü": 1, "train/z": 255, "val/v": 1}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server of this process, with a bucket named `streets`."""
    server_module = pytest.importorskip("moto.server", reason="the S3 test needs moto[server] (extra: test)")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root in the server that holds a `folder` data set, and the environment that reaches it."""
    boto3 = pytest.importorskip("boto3", reason="the S3 test needs moto[server] (extra: test)")
    for key, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "CIRKD_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(key, value)
    server = boto3.client("s3")
    if "streets" not in [each["Name"] for each in server.list_buckets()["Buckets"]]:
        server.create_bucket(Bucket="streets")
        for path in make_folder(tmp_path / "raw", "classes: [a, b]", NAMES).rglob("*.*"):
            server.upload_file(str(path), "streets", f"some root/{path.relative_to(tmp_path / 'raw')}")
    return "s3://streets/some root"


def test_a_data_set_behind_s3_equals_the_local_one(bucket: str, tmp_path: Path) -> None:
    local = build_dataset(
        "folder", split="train", root=make_folder(tmp_path / "raw", "classes: [a, b]", NAMES)
    )
    remote = build_dataset("folder", split="train", root=bucket)
    assert [remote.name(i) for i in range(len(remote))] == [local.name(i) for i in range(len(local))]
    for i in range(len(local)):
        np.testing.assert_array_equal(remote.load(i).image, local.load(i).image)
        np.testing.assert_array_equal(remote.load(i).label, local.load(i).label)
    with refuses("s3://streets/some root/images/nix", DataError, "folder"):
        build_dataset("folder", split="nix", root=bucket)
    with refuses("s3://streets/nowhere/dataset.yaml", DataError, "file"):
        build_dataset("folder", split="train", root="s3://streets/nowhere")


def test_loader_processes_open_their_own_connection(bucket: str) -> None:
    data = build_dataset("folder", split="train", root=bucket)
    options = {"seed": 0, "global_batch": 3, "total_steps": 2}
    transform = TrainTransform(crop=(8, 8))
    here = list(train_loader(data, transform, **options))  # type: ignore[arg-type]
    there = list(train_loader(data, transform, workers=1, **options))  # type: ignore[arg-type]
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a.images, b.images)


def test_preparing_to_and_reading_from_s3(bucket: str, tmp_path: Path) -> None:
    source = build_dataset("folder", split="train", root=bucket)
    target = "s3://streets/prepared"
    for _ in range(2):
        prepare({"train": source}, "folder", {}, target, Encoding(quality=None, tile=32))
    data = build_dataset("folder", split="train", root=target)
    for i in range(len(source)):
        np.testing.assert_array_equal(data.load(i).image, source.load(i).image)
        np.testing.assert_array_equal(data.open(i).label_window(1, 2, 4, 5), source.load(i).label[1:4, 2:5])
    storage = open_storage(target)
    sizes = {name: size for name, size in storage.sizes("train").items() if name.endswith(".safetensors")}
    assert sizes == {
        f"00000{i}.safetensors": len(storage.read(f"train/00000{i}.safetensors")) for i in range(3)
    }


def test_what_was_read_is_not_fetched_again(bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build_dataset("folder", split="train", root=bucket)
    first = data.load(1)
    monkeypatch.setattr(
        data.storage.store, "connection", lambda: pytest.fail("fetched although it is in the cache")
    )
    np.testing.assert_array_equal(data.load(1).image, first.image)


def test_a_server_that_is_gone_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage = RemoteStorage("s3://streets/elsewhere", tries=2, pause=0.01)
    with refuses("s3://streets/elsewhere/a.png", DataError, "127.0.0.1:9", "2 tries"):
        storage.read("a.png")


class Flaky(fsspec.AbstractFileSystem):
    """Breaks off reads as often as `failures` says."""

    protocol = "flaky"
    cachable = False
    failures = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        if path.endswith("absent.png"):
            raise FileNotFoundError(path)
        if path.endswith("secret.png"):
            raise PermissionError(13, "Access denied")
        if Flaky.failures:
            Flaky.failures -= 1
            raise ConnectionResetError(104, "Connection reset by peer")
        return b"content of " + path.encode()


@pytest.fixture
def flaky(tmp_path: Path) -> RemoteStorage:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    return RemoteStorage("flaky://host/root", DiskCache(tmp_path / "cache", 10**6), tries=4, pause=0.001)


def test_errors_that_pass_are_tried_again(flaky: RemoteStorage) -> None:
    Flaky.failures = 3
    assert flaky.read("a.png").startswith(b"content of ")
    assert Flaky.failures == 0


def test_errors_that_stay_name_the_file(flaky: RemoteStorage) -> None:
    Flaky.failures = 99
    with refuses("flaky://host/root/a.png", TransientError, "Connection reset", "4 tries"):
        flaky.read("a.png")
    assert Flaky.failures == 95
    for name, reason in (("absent", "absent"), ("secret", "Access denied")):
        with refuses(f"flaky://host/root/{name}.png", DataError, reason) as caught:
            flaky.read(f"{name}.png")
        assert not isinstance(caught.value, TransientError), "no other try would mend it"
    assert Flaky.failures == 95


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)]
)
def test_a_file_server_that_is_away_is_no_error_of_the_user(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with refuses(tmp_path / "a.png", DataError, os.strerror(number)) as caught:
        LocalStorage(tmp_path).read("a.png")
    assert isinstance(caught.value, TransientError) == passes


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[RemoteStorage]:
    yield RemoteStorage("memory://shelf", DiskCache(tmp_path / "cache", 10**6), tries=1)
    fsspec.filesystem("memory").rm("/shelf", recursive=True)


def test_what_is_written_replaces_what_the_cache_holds(memory: RemoteStorage) -> None:
    for content in (b"old", b"new"):
        memory.write("train/000000.safetensors", content)
        assert memory.read("train/000000.safetensors") == content


@pytest.mark.parametrize(
    "name", ["manifest.json", "preparation.json", "train/index-000003.jsonl", "dataset.yaml", "train.txt"]
)
def test_lists_and_descriptions_are_read_anew(name: str, memory: RemoteStorage, tmp_path: Path) -> None:
    elsewhere = RemoteStorage(memory.url, DiskCache(tmp_path / "other", 10**6), tries=1)
    for content in (b"old", b"new"):
        memory.write(name, content)
        assert elsewhere.read(name) == content, "although another machine wrote it"


def test_a_split_prepared_later_is_seen_through_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: RemoteStorage
) -> None:
    monkeypatch.setenv("CIRKD_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "raw", "classes: [a, b]", NAMES)
    for split in ("train", "val"):
        prepare({split: build_dataset("folder", split=split, root=root)}, "folder", {}, memory.url)
        assert len(build_dataset("folder", split=split, root=memory.url)) == (3 if split == "train" else 1)


def test_a_set_prepared_again_is_not_read_from_what_another_machine_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: RemoteStorage
) -> None:
    def prepared_by(machine: str) -> None:
        monkeypatch.setenv("CIRKD_CACHE", str(tmp_path / machine))
        prepare({"train": build_dataset("folder", split="train", root=root)}, "folder", {}, memory.url)

    def seen_by(machine: str) -> dict[str, int]:
        monkeypatch.setenv("CIRKD_CACHE", str(tmp_path / machine))
        data = build_dataset("folder", split="train", root=memory.url)
        assert isinstance(data, PreparedDataset)
        for i in range(len(data)):
            verify_prepared(data, i)
        samples = [data.load(i) for i in range(len(data))]
        assert [sample.name for sample in samples] == [data.name(i) for i in range(len(data))]
        return {Path(sample.name).stem: int(sample.label[0, 0]) for sample in samples}

    root = make_folder(tmp_path / "raw", "classes: [a, b]", {"train/k1": 1, "train/k2": 0})
    prepared_by("desk")
    assert seen_by("node") == {"k1": 1, "k2": 0}
    open_at_the_node = build_dataset("folder", split="train", root=memory.url)
    make_folder(tmp_path / "raw", "classes: [a, b]", {"train/k0": 1, "train/k1": 0})
    prepared_by("desk")
    assert seen_by("desk") == seen_by("node") == {"k0": 1, "k1": 0, "k2": 0}
    monkeypatch.setattr(open_at_the_node.storage, "cache", DiskCache(tmp_path / "emptied", 10**6))
    with refuses(f"{memory.url}/train/000000.safetensors", DataError, "checksum"):
        open_at_the_node.load(0)


def test_what_is_damaged_behind_a_url_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: RemoteStorage
) -> None:
    monkeypatch.setenv("CIRKD_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "raw", "classes: [a, b]", NAMES)
    raw = {"train": build_dataset("folder", split="train", root=root)}
    prepare(raw, "folder", {}, memory.url)
    shelf, paths = fsspec.filesystem("memory"), [f"/shelf/train/00000{n}.safetensors" for n in range(3)]
    kept = shelf.cat_file(paths[1])
    shelf.pipe_file(paths[0], shelf.cat_file(paths[0])[:100])
    shelf.rm(paths[2])
    prepare(raw, "folder", {}, memory.url)
    assert shelf.cat_file(paths[1]) == kept
    data = build_dataset("folder", split="train", root=memory.url)
    assert isinstance(data, PreparedDataset)
    for i in range(3):
        verify_prepared(data, i)
    with monkeypatch.context() as patch:
        patch.setattr("cirkd_ray.data_tools.prepare.encode_sample", lambda *_: pytest.fail("all is there"))
        prepare(raw, "folder", {}, memory.url)


def test_an_unknown_protocol_says_so() -> None:
    with refuses("nix://host", DataError, "nix"):
        open_storage("nix://host").names("")


def test_file_urls_are_local(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}")
    assert isinstance(storage, LocalStorage)
    assert storage.root == tmp_path


def test_a_storage_can_be_sent_to_another_process(flaky: RemoteStorage) -> None:
    Flaky.failures = 0
    flaky.read("a.png")
    again = pickle.loads(pickle.dumps(flaky))
    assert again.store._connection is None
    assert again.read("b.png").endswith(b"b.png")


def test_the_cache_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=100_000)
    sizes = []
    for number in range(200):
        cache.put(f"file {number}", bytes([number]) * 1000)
        assert cache.get("file 0") is not None, "in constant use"
        sizes.append(cache.size())
    assert max(sizes) <= 100_000
    assert max(sizes) > 60_000
    assert cache.get("file 199") == bytes([199]) * 1000
    assert cache.get("file 1") is None
    cache.put("huge", bytes(50_000))
    assert cache.get("huge") is None


def test_writers_side_by_side_stay_below_the_limit(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, limit=100_000) for _ in range(8)]

    def fill(rank: int) -> None:
        for number in range(60):
            caches[rank].put(f"{rank} {number}", bytes(900))
            caches[rank].get(f"{(rank + 1) % 8} {number}")

    threads = [threading.Thread(target=fill, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50_000 < caches[0].size() <= 100_000


def test_a_damaged_cache_file_is_fetched_again(tmp_path: Path, flaky: RemoteStorage) -> None:
    Flaky.failures = 0
    good = flaky.read("a.png")
    for folder, _, names in os.walk(tmp_path / "cache"):
        for name in names:
            path = Path(folder) / name
            path.write_bytes(b"X" + path.read_bytes()[1:])
    assert flaky.cache.get(flaky.where("a.png")) is None
    assert flaky.read("a.png") == good


def test_a_cache_that_cannot_be_written_is_switched_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache", 1000_000)
    with pytest.warns(UserWarning, match="cache switched off"):
        cache.put("a", b"1")
    cache.put("b", b"2")
    assert cache.get("a") is None


def test_a_cache_file_that_may_not_be_removed_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared folder, files of other users."""
    cache = DiskCache(tmp_path, 100_000)
    cache.put("a", b"1")
    (held,) = (p for p in tmp_path.rglob("*") if p.is_file())
    held.write_bytes(b"damaged")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get("a") is None
    cache.drop("a")
    for number in range(200):
        cache.put(f"file {number}", bytes(1000))
    assert cache.get("file 199") == bytes(1000)


def test_the_environment_sets_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRKD_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("CIRKD_CACHE_GB", "0.5")
    cache = DiskCache.from_environment()
    assert (cache.folder, cache.limit) == (tmp_path / "here", 500_000_000)
    monkeypatch.setenv("CIRKD_CACHE_GB", "0")
    off = DiskCache.from_environment()
    off.put("a", b"1")
    assert off.get("a") is None
    assert not (tmp_path / "here").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, value, folder in (("CIRKD_CACHE", "~/x", "x"), ("XDG_CACHE_HOME", "~/y", "y/cirkd")):
        monkeypatch.delenv("CIRKD_CACHE")
        monkeypatch.setenv(variable, value)
        assert DiskCache.from_environment().folder == tmp_path / folder
    for wrong in ("20GB", "nan", "inf"):
        monkeypatch.setenv("CIRKD_CACHE_GB", wrong)
        with refuses("CIRKD_CACHE_GB", ConfigError, f"'{wrong}'"):
            open_storage("memory://shelf")
