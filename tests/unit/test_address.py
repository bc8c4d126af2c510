"""URLs without what must not be seen of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cirkd_ray.cluster import stopping
from cirkd_ray.config import load_run
from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.address import is_url, known_secrets, learn, shown, url, with_secrets, without_secrets
from cirkd_ray.train.stop import line_to_continue
from tests.errors import refuses

FULL = "s3://KEY:PASSWORD@bucket/runs?region=eu-west-1"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRKD_ADDRESSES", "")


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        (FULL, "s3://bucket/runs"),
        ("https://host/a.pth?X-Amz-Signature=1", "https://host/a.pth"),
        ("sftp://me@host/a", "sftp://me@host/a"),
        (
            "abfss://container@account.dfs.core.windows.net/a",
            "abfss://container@account.dfs.core.windows.net/a",
        ),
        ("s3://KEY:PASS/WO+RD@bucket/runs", "s3://bucket/runs"),
        ("https://TOKEN@host/a.pth", "https://host/a.pth"),
        ("http://[::1]:9000/a", "http://[::1]:9000/a"),
        ("gs://bucket/some root/#1/", "gs://bucket/some root/#1"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("package://quickstart/teacher", None),
        ("/a/b", None),
        ("a:b", None),
        ("file:///a", None),
    ],
)
def test_an_address_has_no_secrets(given: str | Path, bare: str | None) -> None:
    assert url(given) == bare
    assert is_url(given) == (bare is not None)


def test_a_connection_is_opened_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert url(FULL) == "s3://bucket/runs"
    assert with_secrets("s3://bucket/runs") == FULL
    assert with_secrets("s3://bucket/runs/a/b") == "s3://KEY:PASSWORD@bucket/runs/a/b?region=eu-west-1"
    assert with_secrets("s3://bucket/runs2") == "s3://bucket/runs2"
    told = known_secrets()
    monkeypatch.setenv("CIRKD_ADDRESSES", "")
    learn(told)
    assert with_secrets("s3://bucket/runs") == FULL


def test_recipes_and_command_lines_have_none() -> None:
    tree = without_secrets({"a": [FULL, 1, ("x?y@z", None)], "b": {"c": "https://host/a?sig=1"}})
    assert tree == {"a": ["s3://bucket/runs", 1, ("x?y@z", None)], "b": {"c": "https://host/a"}}
    spec = load_run("quickstart", [f"data.root={FULL}", "model.weights=https://host/a.pth?sig=1"])
    assert (spec.data.root, spec.model.weights) == ("s3://bucket/runs", "https://host/a.pth")
    words = ["train", "--out", FULL, "--set", "model.weights=https://host/a.pth?sig=1"]
    line = shown(line_to_continue(words, ("--name", "a")))
    assert line.replace("'", "").endswith(
        "train --out s3://bucket/runs --set model.weights=https://host/a.pth --name a"
    )


def test_a_password_may_hold_what_ends_a_host() -> None:
    url("s3://KEY:PASS/WO+RD@bucket/runs")
    assert with_secrets("s3://bucket/runs/a") == "s3://KEY:PASS%2FWO%2BRD@bucket/runs/a"


def test_what_is_only_shown_is_not_learnt() -> None:
    url(FULL)
    before = known_secrets()
    assert shown(f"cannot open {FULL[:-3]}") == "cannot open s3://bucket/runs"
    assert shown("cannot open https://host/a?sig=12 now") == "cannot open https://host/a now"
    assert known_secrets() == before


def test_what_is_no_url_is_shown_without_its_rest() -> None:
    assert "1234" not in shown("http://[x/a?sig=1234")
    with refuses("http://...", ConfigError):
        url("http://[x/a?sig=1234")


def test_a_cluster_keeps_no_secret_of_a_command_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, bytes] = {}
    store = SimpleNamespace(_internal_kv_put=kept.__setitem__, _internal_kv_del=kept.pop)
    monkeypatch.setattr(stopping, "internal_kv", store)
    url(FULL)
    with stopping.one_call():
        assert "PASSWORD" in str(kept)
    assert not kept
