"""Downloads against a server on the loopback: resumed, checked, and told plainly when they fail."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading

import pytest

from cirkd_ray.errors import WeightsError, public
from cirkd_ray.models.build import parse_name
from cirkd_ray.weights.catalogue import KNOWN_FILES
from cirkd_ray.weights.fetch import download
from tests.errors import refuses

DATA = bytes(range(256)) * 4000
SHA = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; `breaks` is the number of answers that end after a third of what they announce."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = 0
        self.errors: list[int] = []
        self.ranges: list[str | None] = []
        self.honour_range = self.honour_version = True
        self.data, self.etag, self.shift = DATA, "", 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.errors:
            return self.send_error(self.server.errors.pop(0))
        if self.path.endswith("page"):
            return self._answer(200, b"<html>sign in</html>", "text/html; charset=utf-8")
        data, known = self.server.data, self.headers.get("If-Range", self.server.etag)
        if not self.server.honour_range or (self.server.honour_version and known != self.server.etag):
            wanted = None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            return self.end_headers()
        start -= self.server.shift if wanted else 0
        places = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        return self._answer(206 if wanted else 200, data[start:], "application/octet-stream", **places)

    def _answer(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, **({"ETag": self.server.etag} if self.server.etag else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 3]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "CIRKD_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    instance = Server()
    thread = threading.Thread(target=instance.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


def fetch(server, target, **options):
    return download(f"{server.url}/{options.pop('path', 'file.pth')}", target, pause=0.01, **options)


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    told = []
    path = fetch(server, tmp_path / "deep" / "file.pth", sha256=SHA[:8], progress=lambda *n: told.append(n))
    assert path.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert {p.name for p in path.parent.iterdir()} == {"file.pth", "file.pth.origin.json"}


def test_broken_connections_are_resumed(server, tmp_path):
    server.breaks = 2
    assert fetch(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA
    third = len(DATA) // 3
    assert server.ranges == [None, f"bytes={third}-", f"bytes={third + (len(DATA) - third) // 3}-"]


def test_a_later_call_goes_on_where_this_one_gave_up(server, tmp_path):
    server.breaks = 1
    with refuses(
        f"{server.url}/file.pth", WeightsError, f"after {len(DATA) // 3} of", "1 times", "bytes are kept"
    ):
        fetch(server, tmp_path / "f", attempts=1)
    assert not (tmp_path / "f").exists()
    assert fetch(server, tmp_path / "f").read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={len(DATA) // 3}-"


def test_a_server_that_knows_no_ranges_sends_all_again(server, tmp_path):
    server.breaks, server.honour_range = 1, False
    assert fetch(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA


def test_a_whole_part_is_taken_and_a_strange_one_thrown_away(server, tmp_path):
    for name, content in (("a", DATA), ("b", DATA + b"more")):
        (tmp_path / f"{name}.part").write_bytes(content)
        note = {"url": f"{server.url}/file.pth", "version": ""}
        (tmp_path / f"{name}.part.origin.json").write_text(json.dumps(note))
        assert fetch(server, tmp_path / name, sha256=SHA).read_bytes() == DATA
    size = len(DATA)
    assert server.ranges == [f"bytes={size}-", f"bytes={size + 4}-", None]


@pytest.mark.parametrize("note", [None, "{", "[]", '{"url": 3}'])
def test_a_part_of_unknown_origin_is_begun_again(server, tmp_path, note):
    (tmp_path / "f.part").write_bytes(b"strange")
    if note is not None:
        (tmp_path / "f.part.origin.json").write_text(note)
    assert fetch(server, tmp_path / "f").read_bytes() == DATA
    assert server.ranges == [None]


def test_a_file_of_another_address_is_refused_and_a_part_begun_again(server, tmp_path):
    fetch(server, tmp_path / "whole", path="a/file.pth")
    server.breaks = 1
    with refuses(f"{server.url}/a/file.pth", WeightsError, "1 times"):
        fetch(server, tmp_path / "cut", path="a/file.pth", attempts=1)
    asked = len(server.ranges)
    with refuses(tmp_path / "whole", WeightsError, "/a/file.pth", "/b/file.pth", "another"):
        fetch(server, tmp_path / "whole", path="b/file.pth")
    assert len(server.ranges) == asked
    assert fetch(server, tmp_path / "whole", path="b/file.pth", sha256=SHA).read_bytes() == DATA
    assert len(server.ranges) == asked
    assert fetch(server, tmp_path / "cut", path="b/file.pth#part").read_bytes() == DATA
    assert server.ranges[asked:] == [None]


@pytest.mark.parametrize("honour_version", [True, False])
def test_a_file_that_changed_meanwhile_is_not_mixed(server, tmp_path, honour_version):
    """Also where the server disregards `If-Range`."""
    server.breaks, server.etag = 1, '"first"'
    with refuses(f"{server.url}/file.pth", WeightsError, "1 times"):
        fetch(server, tmp_path / "f", attempts=1)
    server.data, server.etag, server.honour_version = DATA[::-1], '"second"', honour_version
    assert fetch(server, tmp_path / "f").read_bytes() == DATA[::-1]


def test_an_answer_from_another_place_is_not_appended(server, tmp_path):
    server.breaks, server.shift = 1, 5
    assert fetch(server, tmp_path / "f").read_bytes() == DATA
    assert server.ranges == [None, f"bytes={len(DATA) // 3}-", None]


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    with refuses(f"{server.url}/file.pth", WeightsError, "SHA-256", f"{SHA[:16]}...", "0123"):
        fetch(server, tmp_path / "f", sha256="0123")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    fetch(server, tmp_path / "f", sha256=SHA)
    assert server.ranges == []
    (tmp_path / "f").write_bytes(b"damaged")
    assert fetch(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA


def test_passing_trouble_is_tried_again_and_refusals_are_not(server, tmp_path):
    server.errors = [503, 429]
    assert fetch(server, tmp_path / "a").read_bytes() == DATA
    server.errors = [404, 404]
    with refuses(f"{server.url}/file.pth", WeightsError, 404):
        fetch(server, tmp_path / "b")
    assert server.errors == [404]


def test_a_web_page_is_no_file(server, tmp_path):
    with refuses(f"{server.url}/page", WeightsError, "web page"):
        fetch(server, tmp_path / "f", path="page")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["CIRKD_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_touches_no_network(server, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with refuses(tmp_path / "f", WeightsError, "offline"):
        fetch(server, tmp_path / "f")
    assert server.ranges == []
    monkeypatch.setenv(variable, "0")
    fetch(server, tmp_path / "f")


def test_a_proxy_is_asked(server, tmp_path, monkeypatch):
    """The proxy is the server; the address behind it does not exist."""
    monkeypatch.setenv("http_proxy", server.url)
    path = download("http://weights.invalid/file.pth", tmp_path / "f", sha256=SHA, attempts=1)
    assert path.read_bytes() == DATA


def test_no_server_at_all(tmp_path, server):
    server.shutdown()
    server.server_close()
    with refuses(f"{server.url}/file.pth", WeightsError, "refused", "2 times"):
        fetch(server, tmp_path / "f", attempts=2)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/file", "/a/path"])
def test_only_http(url, tmp_path):
    with refuses(url, WeightsError, "http", "https"):
        download(url, tmp_path / "f")


def test_known_files_name_networks_that_exist():
    assert len(KNOWN_FILES) > 10
    for entry in KNOWN_FILES.values():
        parse_name(entry.model)
        assert entry.url.startswith("https://")
        assert not entry.sha256 or (len(entry.sha256) == 8 and int(entry.sha256, 16) >= 0)


SIGNED = "X-Amz-Credential=AKIA1&X-Amz-Signature=5ecret"


def test_a_signed_address_is_stored_and_told_without_its_query(server, tmp_path):
    target = tmp_path / "w.bin"
    server.breaks, server.errors = 1, [503]
    with pytest.raises(WeightsError) as error:
        download(f"{server.url}/w.bin?{SIGNED}", target, attempts=2, pause=0)
    download(f"{server.url}/w.bin?{SIGNED}2", target)  # with a new signature it goes on where it was
    assert target.read_bytes() == DATA
    assert server.ranges[-1] is not None
    kept = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert f"{server.url}/w.bin" in kept
    assert "5ecret" not in kept + str(error.value)
    server.errors = [403]
    with pytest.raises(WeightsError) as error:
        download(f"{server.url}/other?{SIGNED}", tmp_path / "x")
    assert "5ecret" not in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_told(tmp_path):
    with refuses("http://host/w.bin", WeightsError) as error:
        download("http://me:5ecret@host/w.bin", tmp_path / "x")
    assert "5ecret" not in str(error.value)


def test_what_names_a_file_stays_in_an_address():
    assert public("https://h/download?id=7&export=download#a") == "https://h/download?id=7&export=download"
