"""Downloads from a server on loopback: resumed, checked, unpacked without escapes; SBD joined to VOC."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.masks import decode_label
from cirkd_ray.data_tools import get as get_module
from cirkd_ray.data_tools.get import Archive, get, unpack
from cirkd_ray.data_tools.sbd import augment, read_mat
from cirkd_ray.errors import ConfigError, DataError
from tests.errors import refuses
from tests.unit.test_data_check import png


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`, understands ranges, breaks the connection off after `limit` bytes where it is set."""

    files: ClassVar[dict[str, bytes]] = {}
    limit: int | None = None
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        Server.asked.append((name, wanted))
        if name not in Server.files:
            self.send_error(404)
            return
        content, start = Server.files[name], int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        part = content[start:]
        self.wfile.write(part if Server.limit is None else part[: Server.limit])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    Server.files, Server.limit, Server.asked = {}, None, []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def zipped(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in members.items():
            pack.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            pack.writestr(info, target)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as pack:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            pack.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def camvid_zip() -> bytes:
    rng = np.random.default_rng(0)
    members = {"tool-1/readme.txt": b"not data"}
    for split in ("train", "val"):
        members[f"tool-1/CamVid/{split}/ä b.png"] = png(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
        members[f"tool-1/CamVid/{split}annot/ä b.png"] = png(rng.integers(0, 12, (90, 120), dtype=np.uint8))
    return zipped(members)


def test_camvid_from_a_mirror_through_the_command(mirror: str, tmp_path: Path) -> None:
    name = get_module.SOURCES["camvid"][0].file
    Server.files[name] = camvid_zip()
    root = tmp_path / "data"
    for _ in range(2):
        assert main(["data", "get", "camvid", str(root), "--mirror", mirror]) == 0
    assert Server.asked == [(name, None)], "what is unpacked is not fetched again"
    assert build_dataset("camvid", split="val", root=root).load(0).size == (90, 120)
    assert not (root / "readme.txt").exists()
    # The mirror's files are small and few, and nothing else is wrong with them.
    report = tmp_path / "report.json"
    assert main(["data", "check", "camvid", str(root), "--json", str(report)]) == 1
    kinds = {kind for split in json.loads(report.read_text()).values() for kind, _ in split["findings"]}
    assert kinds == {"size", "count"}


def test_a_broken_download_goes_on_where_it_stopped(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.weights import fetch as download

    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    content = camvid_zip()
    checksum = "md5:" + hashlib.md5(content).hexdigest()
    sources = (Archive(f"{mirror}/a.zip", checksum, "*/CamVid"),)
    Server.files["a.zip"], Server.limit = content, len(content) // 3
    Server.limit = len(content) // 10
    with refuses(f"{mirror}/a.zip", DataError, "bytes are kept"):
        get("camvid", tmp_path, sources=sources)
    Server.limit = None
    get("camvid", tmp_path, sources=sources, keep_archives=False)
    ranges = [wanted for _, wanted in Server.asked]
    assert ranges[0] is None
    assert ranges[-1] == f"bytes={4 * (len(content) // 10)}-"
    assert not (tmp_path / ".archives" / "a.zip").exists()
    assert len(build_dataset("camvid", split="train", root=tmp_path)) == 1


def test_a_wrong_checksum_is_refused_and_removed(mirror: str, tmp_path: Path) -> None:
    Server.files["a.zip"] = camvid_zip()
    with refuses(f"{mirror}/a.zip", DataError, "sha1", 1234):
        get("camvid", tmp_path, sources=(Archive(f"{mirror}/a.zip", "sha1:1234"),))
    assert not (tmp_path / ".archives" / "a.zip").exists()


def test_what_is_not_there_is_named(mirror: str, tmp_path: Path) -> None:
    with refuses(f"{mirror}/a.zip", DataError, 404):
        get("camvid", tmp_path, sources=(Archive(f"{mirror}/a.zip"),))
    with refuses("cityscapes", ConfigError, "account"):
        get("cityscapes", tmp_path)
    with refuses("camvit", ConfigError, "'camvid'"):
        get("camvit", tmp_path)


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/etc/out.txt", "..\\out.txt", "C:/out.txt"]
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_member_leaves_the_folder(name: str, pack: object, tmp_path: Path) -> None:
    archive = tmp_path / "a.pack"
    archive.write_bytes(pack({"fine.txt": b"1", name: b"2"}))  # type: ignore[operator]
    with refuses(archive, DataError, f"{name!r}", "leave"):
        unpack(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_unpacked(kind: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(tarred({"link": b""}, kind))
    with refuses(archive, DataError, "'link'", "plain file"):
        unpack(archive, tmp_path / "to")
    archive.write_bytes(zipped({}, {"link": "/etc/passwd"}))
    with refuses(archive, DataError, "'link' is a link"):
        unpack(archive, tmp_path / "to")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive_is_an_error(pack: object, tmp_path: Path) -> None:
    archive = tmp_path / "a.pack"
    whole = pack({f"{n}.bin": np.random.default_rng(n).bytes(5000) for n in range(4)})  # type: ignore[operator]
    for damaged in (whole[: len(whole) // 2], whole[:9000] + bytes(60) + whole[9060:], b"<html>"):
        archive.write_bytes(damaged)
        with refuses(archive, DataError, "damaged"):
            unpack(archive, tmp_path / "to")


def test_unpacking_goes_on_after_an_interruption(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"deep/a.bin": b"abc", "deep/b.bin": b"defg"}))
    unpack(archive, tmp_path / "to")
    (tmp_path / "to/deep/a.bin").write_bytes(b"own")
    (tmp_path / "to/deep/b.bin").write_bytes(b"de")
    steps: list[int] = []
    unpack(archive, tmp_path / "to", tell=lambda text, done, total: steps.append(done))
    assert (tmp_path / "to/deep/a.bin").read_bytes() == b"own", "its size is right: left as it is"
    assert (tmp_path / "to/deep/b.bin").read_bytes() == b"defg"
    assert steps == [1, 2]


def test_too_little_space_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a": bytes(10_000), "b": bytes(4000)}))
    usage = get_module.shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(get_module.shutil, "disk_usage", lambda _: usage)
    with refuses(tmp_path / "to", DataError, "GB needed", "GB free"):
        unpack(archive, tmp_path / "to")
    (tmp_path / "to/a").write_bytes(bytes(10_000))
    unpack(archive, tmp_path / "to")
    assert (tmp_path / "to/b").stat().st_size == 4000, "what is there needs no more space"


def test_sbd_labels_join_vocs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)
    official, additional = (rng.integers(0, 21, (8, 9), dtype=np.uint8) for _ in range(2))
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass/one.png").write_bytes(png(official))
    (tmp_path / "SBD/cls").mkdir(parents=True)
    for stem in ("one", "two"):
        scipy_io.savemat(
            tmp_path / f"SBD/cls/{stem}.mat", {"GTcls": {"Segmentation": additional, "Boundaries": 0}}
        )
    monkeypatch.setattr(
        "cirkd_ray.data_tools.sbd.packaged_list", lambda _, split: {"train": ["one", "two"], "val": []}[split]
    )
    augment(tmp_path, tmp_path / "SBD", lambda *_: None)
    for stem, expected in (("one", official), ("two", additional)):
        path = tmp_path / "SegmentationClassAug" / f"{stem}.png"
        np.testing.assert_array_equal(decode_label(path.read_bytes(), "x"), expected)
    (tmp_path / "SBD/cls/two.mat").write_bytes(b"not matlab")
    with refuses(tmp_path / "SBD/cls/two.mat", DataError, "SBD"):
        read_mat(tmp_path / "SBD/cls/two.mat")
    (tmp_path / "SBD/cls/two.mat").unlink()
    (tmp_path / "SegmentationClassAug/two.png").unlink()
    with refuses("two", DataError, tmp_path / "SBD/cls/two.mat"):
        augment(tmp_path, tmp_path / "SBD", lambda *_: None)
