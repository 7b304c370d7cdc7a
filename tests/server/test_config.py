"""Settings of a node: what is refused and why, and where a setting may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.server.config import NodeConfig, is_loopback, load_config, nearest, read_file

TRIO = {1: "a:7400", 2: "b:7400", 3: "c:7400"}
TLS = {"tls_cert": "n.crt", "tls_key": "n.key", "tls_ca": "ca.crt"}


def make(**settings: Any) -> NodeConfig:  # also wrong types, on purpose
    return NodeConfig(**{"node_id": 1, "data": "d", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"node_id": 0}, "node_id must be from 1", id="node ids begin with 1"),
        pytest.param({"node_id": "1"}, "node_id has the wrong type", id="types are checked"),
        pytest.param({"insecure": 1}, "insecure has the wrong type", id="1 is no bool"),
        pytest.param({"join": "a:1"}, "join has the wrong type", id="join is no bare string"),
        pytest.param({"data": " "}, "data must name", id="data is not blank"),
        pytest.param({"cluster": "a b"}, "cluster must be", id="cluster names are plain"),
        pytest.param({"cluster": ""}, "cluster must be", id="a cluster has a name"),
        pytest.param({"listen": "7400"}, "listen: '7400' is not", id="a port is no address"),
        pytest.param({"listen": "", "initial": TRIO}, "listen is needed", id="members listen"),
        pytest.param({"listen": "", "join": ("a:1",)}, "listen is needed", id="joiners listen"),
        pytest.param({"listen": "127.0.0.1:99999"}, "not an endpoint", id="ports end at 65535"),
        pytest.param({"listen": "10.0.0.1:1"}, "set tls_cert", id="no clear text off loopback"),
        pytest.param({"listen": "db1:1"}, "set tls_cert", id="a host name may be off loopback"),
        pytest.param(
            {"listen": "0.0.0.0:1", "insecure": True}, "advertise is needed", id="0.0.0.0 is nobody"
        ),
        pytest.param(
            {"metrics_listen": "10.0.0.1:1"}, "metrics_listen 10.0.0.1:1 can", id="nor metrics"
        ),
        pytest.param(
            {"metrics_listen": "127.0.0.1:7400"}, "taken by listen", id="two ports, not one"
        ),
        pytest.param({"heartbeat_ms": 55}, "multiple of 10", id="times are whole ticks"),
        pytest.param({"heartbeat_ms": 100}, "at least 5 times", id="an election outlasts 5 beats"),
        pytest.param({"election_timeout_ms": 10}, "from 50", id="elections are not instant"),
        pytest.param({"checkpoint_mib": 0}, "checkpoint_mib must", id="checkpoints have a size"),
        pytest.param({"snapshot_mib_per_s": 0}, "snapshot_mib", id="snapshots get through"),
        pytest.param({"disk_reserve_mib": -1}, "disk_reserve", id="no negative reserve"),
        pytest.param(
            {"node_id": 4, "initial": TRIO}, "only 1, 2, 3", id="founders name themselves"
        ),
        pytest.param({"initial": {1: "a"}}, "initial, member 1", id="founders have addresses"),
        pytest.param({"initial": {1: "a:1", 2: "a:1"}}, "same address", id="addresses differ"),
        pytest.param({"initial": {1: "a:1", 0: "b:1"}}, "not in 1..", id="founder 0 is nobody"),
        pytest.param({"initial": TRIO, "join": ("b:1",)}, "exclude", id="found or join"),
        pytest.param({"join": ("b",)}, "join: 'b'", id="joined addresses are addresses"),
        pytest.param(
            {"initial": TRIO, "advertise": "z:1"}, "make them equal", id="one address, not two"
        ),
        pytest.param({"tls_cert": "x"}, "tls_ca is needed with tls_cert", id="all of TLS or none"),
        pytest.param({**TLS, "insecure": True}, "exclude", id="TLS is not insecure"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_make_a_loopback_node_that_founds_its_own_cluster() -> None:
    config = make()
    assert config.founders == {1: "127.0.0.1:7400"}
    assert config.advertised == "127.0.0.1:7400"
    assert not config.tls
    assert make(listen="").advertised == ""


def test_founders_and_advertised_address_follow_initial() -> None:
    config = make(listen="0.0.0.0:7400", initial=TRIO, **TLS)
    assert config.advertised == "a:7400"
    assert config.founders == TRIO
    assert make(join=("b:7400",)).founders == {}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:0", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("example.org:1", False),
    ],
)
def test_loopback(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('node_id = 7\ndata = "f"\nheartbeat_ms = 20\ncluster = "file"\n')
    environment = {"QUORATE_CLUSTER": "env", "QUORATE_DATA": "e", "PATH": "/"}
    config = load_config({"data": "flag", "listen": None}, environment, file)
    assert (config.data, config.cluster, config.heartbeat_ms) == ("flag", "env", 20)
    assert (config.node_id, config.election_timeout_ms) == (7, 400)


def test_text_becomes_the_type_of_the_setting() -> None:
    environment = {
        "QUORATE_NODE_ID": "2",
        "QUORATE_INITIAL": "1=127.0.0.1:1, 2=127.0.0.1:2",
        "QUORATE_LEASE_READS": "yes",
        "QUORATE_FAST_FAILOVER": "off",
    }
    config = load_config({"data": "d"}, environment)
    assert config.initial == {1: "127.0.0.1:1", 2: "127.0.0.1:2"}
    assert config.lease_reads
    assert not config.fast_failover
    joined = load_config({"data": "d", "node_id": "3", "join": "a:1, b:2"}, {})
    assert joined.join == ("a:1", "b:2")


def test_toml_takes_tables_and_arrays(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('node_id = 1\ndata = "d"\n[initial]\n1 = "a:1"\n2 = "b:1"\n')
    assert load_config({}, {}, file).initial == {1: "a:1", 2: "b:1"}
    file.write_text('node_id = 1\ndata = "d"\njoin = ["a:1", "b:1"]\n')
    assert load_config({}, {}, file).join == ("a:1", "b:1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("heartbeet_ms = 1", "meant heartbeat_ms?", id="misspelt key"),
        pytest.param("id = 1", "meant node_id?", id="flag's name"),
        pytest.param("zzz = 1", "there are node_id", id="nothing like it"),
        pytest.param("node_id = '1x'", "must be a whole number", id="text for a number"),
        pytest.param("listen = 7400", "Expected `str`", id="number for text"),
        pytest.param("node_id = ", "is not TOML", id="no TOML"),
        pytest.param("initial = ['a:1']", "NUMBER=HOST:PORT", id="founders without numbers"),
        pytest.param("initial = {x = 'a:1'}", "NUMBER=HOST:PORT", id="founder named by a word"),
        pytest.param("initial = '1=a:1,1=b:1'", "named twice", id="founder twice"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_file(tmp_path / "b.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="is no configuration"):
        read_file(tmp_path / "big.toml")


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not() -> None:
    with pytest.raises(ConfigError, match="QUORATE_HEARTBEAT_MS"):
        load_config({"node_id": 1, "data": "d"}, {"QUORATE_HEARTBEAT": "50"})
    foreign = {"QUORATE_SERVICE_HOST": "10.0.0.1", "QUORATE_ENDPOINTS": "a:1", "QUORATE_PORT": "x"}
    assert load_config({"node_id": 1, "data": "d"}, foreign) == make()


def test_what_is_needed_says_all_places() -> None:
    with pytest.raises(ConfigError, match="--id, QUORATE_NODE_ID, or node_id"):
        load_config({"data": "d"}, {})
    with pytest.raises(ConfigError, match="QUORATE_LEASE_READS: must be true or false"):
        load_config({"node_id": 1, "data": "d"}, {"QUORATE_LEASE_READS": "maybe"})


def test_nearest_finds_misspellings_only() -> None:
    names = ("data", "listen", "node_id")
    assert nearest("lisen", names) == "listen"
    assert nearest("node-id", names) == "node_id"
    assert nearest("service_host", names) == ""
