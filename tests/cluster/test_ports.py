"""What a Ray that a command starts listens on, and whom it answers."""

from __future__ import annotations

import ipaddress
import os
import urllib.error
import urllib.request

import grpc
import psutil
import pytest
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

pytestmark = pytest.mark.ray
GET_NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


@ray.remote
def started() -> int:
    return os.getpid()


def listening() -> dict[int, set[str]]:
    """Port -> addresses of this process and of all that it has started."""
    found: dict[int, set[str]] = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            sockets = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for each in sockets:
            if each.status == psutil.CONN_LISTEN:
                found.setdefault(each.laddr.port, set()).add(each.laddr.ip)
    return found


def test_it_listens_on_this_machine_alone(ray_cluster: None) -> None:
    ray.get([started.remote() for _ in range(4)])
    ports = listening()
    assert len(ports) >= 7  # control store, raylet and its objects, agents, dashboard, workers
    addresses = {ipaddress.ip_address(ip) for found in ports.values() for ip in found}
    plain = {getattr(each, "ipv4_mapped", None) or each for each in addresses}
    assert all(each.is_loopback for each in plain), ports


def test_nobody_is_answered_without_the_token(ray_cluster: None) -> None:
    context = ray.get_runtime_context()
    url = f"http://{ray._private.worker._global_node.webui_url}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=30)
    assert refused.value.code == 401
    token = get_auth_headers_if_auth_enabled({})
    with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=30) as answer:
        assert answer.status == 200
    with grpc.insecure_channel(context.gcs_address) as channel:
        call = channel.unary_unary(GET_NODES)
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=30)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert call(b"", timeout=30, metadata=[(k.lower(), v) for k, v in token.items()])


def test_nothing_is_reported_to_anybody(ray_cluster: None) -> None:
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert not usage_stats_enabled()
