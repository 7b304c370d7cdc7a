"""What an operator may set of one node, where it may be set, and what is refused.

A setting is looked for in this order: flags of the command line, environment (``QUORATE_`` and
the setting's name in capitals), the TOML file, the default. ``NodeConfig`` checks itself when it
is made, so that every node, embedded or not, starts from settings that can work.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from quorate.base.limits import MEMBERS_MAX
from quorate.client.endpoints import Endpoint, parse_endpoint
from quorate.client.settings import ENDPOINTS_MAX
from quorate.errors import ConfigError, InvalidArgumentError

ENVIRONMENT_PREFIX: Final = "QUORATE_"
LISTEN_DEFAULT: Final = "127.0.0.1:7400"
#: Times are counted in ticks of the core, so they come in multiples of it.
TICK_MS: Final = 10
#: Fewer would let two late heartbeats depose a healthy leader (Raft 5.6: an order of magnitude).
HEARTBEATS_PER_ELECTION_MIN: Final = 5
NODE_ID_MAX: Final = 2**31 - 1  # fits every counter that shows it
CONFIG_FILE_BYTES_MAX: Final = 1024 * 1024  # a configuration is a page, not a disk image
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIMILAR: Final = 0.75  # how alike two names must be for one to be a misspelling of the other

#: (least, greatest) of the numbers, both allowed.
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "node_id": (1, NODE_ID_MAX),
    "election_timeout_ms": (50, 60_000),
    "heartbeat_ms": (TICK_MS, 10_000),
    "checkpoint_mib": (1, 4096),
    "disk_reserve_mib": (0, 1024 * 1024),
    "snapshot_mib_per_s": (1, 100_000),
}


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One node. Addresses are "host:port". Checked when made.

    Raises:
        ConfigError: a setting has the wrong type or range, or settings contradict each other; the
            text names the setting and says what to write.
    """

    #: Number of this node, 1 or more; unique in the cluster, and for ever: the number of a removed
    #: or wiped node is never used again.
    node_id: int
    #: Directory of the log and the state store; made if it does not exist.
    data: str
    #: Name that all nodes of the cluster carry; a node of another cluster is refused.
    cluster: str = "quorate"
    #: Where to accept members and clients; port 0 takes a free one. "": nowhere, for a node that
    #: is alone and serves only its own process.
    listen: str = LISTEN_DEFAULT
    #: The address that others use; "": as in ``initial``, or else ``listen``.
    advertise: str = ""
    #: Members that found the cluster, by number; the same on each of them. Read only while the
    #: data directory is empty. Neither this nor ``join``: the node founds a cluster of its own.
    initial: dict[int, str] = {}
    #: Nodes of a running cluster that this new node asks which cluster they are; an operator lets
    #: it in (``quorate members add``), before or after. Read only while the data directory is
    #: empty.
    join: tuple[str, ...] = ()
    #: Allow an address beyond this machine without TLS.
    insecure: bool = False
    #: This node's certificate, its key, and the authority that signs all certificates of the
    #: cluster (PEM files): all three or none.
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    #: Shortest silence of a leader after which a member campaigns; the longest is twice that.
    election_timeout_ms: int = 400
    heartbeat_ms: int = 50
    #: A checkpoint is written when the log has grown by so much since the last one.
    checkpoint_mib: int = 32
    #: Serve linearizable reads from the leader's lease, without asking a majority. Relies on clocks
    #: that run at about the same rate, and gives up ``fast_failover``.
    lease_reads: bool = False
    #: Campaign as soon as the connection to the leader breaks; no effect with ``lease_reads``.
    fast_failover: bool = True
    #: Where to serve /metrics, /live and /ready over HTTP; "": nowhere.
    metrics_listen: str = ""
    #: The node turns read-only when less than this is free on its disk.
    disk_reserve_mib: int = 64
    #: Speed at which a snapshot is sent to a member that is far behind.
    snapshot_mib_per_s: int = 16
    #: Machines of the user's own, as "package.module:Class"; the same on every member.
    machines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every setting, and the settings together.

        Raises:
            ConfigError: see the class.
        """
        self._check_types()
        for name, (least, greatest) in RANGES.items():
            if not least <= getattr(self, name) <= greatest:
                _refuse(name, f"must be from {least} to {greatest}, not {getattr(self, name)}")
        self._check_times()
        if not self.data.strip() or "\0" in self.data:
            _refuse("data", "must name the directory that keeps this node's log and state")
        if not _NAME.fullmatch(self.cluster):
            _refuse(
                "cluster",
                f"must be 1 to 64 letters, digits, '.', '_' or '-', not {self.cluster!r}",
            )
        self._check_addresses()
        self._check_founding()
        self._check_tls()

    @property
    def advertised(self) -> str:
        """The address that others use for this node."""
        return self.advertise or self.initial.get(self.node_id, "") or self.listen

    @property
    def founders(self) -> dict[int, str]:
        """Members of a cluster that this node is to found; empty if it joins one."""
        if self.initial or self.join:
            return dict(sorted(self.initial.items()))
        return {self.node_id: self.advertised}

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted and both ends show certificates."""
        return bool(self.tls_cert)

    def _check_types(self) -> None:
        for field in msgspec.structs.fields(self):
            try:
                msgspec.convert(getattr(self, field.name), field.type)
            except msgspec.ValidationError as error:
                _refuse(field.name, f"has the wrong type: {error}")

    def _check_times(self) -> None:
        for name in ("election_timeout_ms", "heartbeat_ms"):
            if getattr(self, name) % TICK_MS != 0:
                _refuse(name, f"must be a multiple of {TICK_MS} ms, not {getattr(self, name)}")
        if self.election_timeout_ms < HEARTBEATS_PER_ELECTION_MIN * self.heartbeat_ms:
            _refuse(
                "election_timeout_ms",
                f"must be at least {HEARTBEATS_PER_ELECTION_MIN} times heartbeat_ms, "
                f"{HEARTBEATS_PER_ELECTION_MIN * self.heartbeat_ms}, not "
                f"{self.election_timeout_ms}; late heartbeats would depose a healthy leader",
            )

    def _check_addresses(self) -> None:
        if self.metrics_listen:
            parse_listen("metrics_listen", self.metrics_listen)
        if not self.listen:
            if self.initial or self.join or self.advertise:
                _refuse("listen", "is needed by a node that others are to reach")
            return
        listen = parse_listen("listen", self.listen)
        if self.metrics_listen == self.listen and listen.port != 0:
            _refuse("metrics_listen", f"{self.listen} is taken by listen; take another port")
        if self.advertise:
            _parse("advertise", self.advertise)
        for number, address in self.initial.items():
            _parse(f"initial, member {number}", address)
        for address in self.join:
            _parse("join", address)
        if not self.initial and not self.advertise and _is_wildcard(listen.host):
            _refuse(
                "advertise",
                f"is needed with listen = {self.listen!r}: name the host:port by which the other "
                "nodes and the clients reach this one",
            )

    def _check_founding(self) -> None:
        if self.initial and self.join:
            _refuse(
                "join", "and initial exclude each other: found a cluster, or join a running one"
            )
        if len(self.join) > ENDPOINTS_MAX:
            _refuse("join", f"holds {len(self.join)} addresses, at most {ENDPOINTS_MAX}")
        if not self.initial:
            return
        if self.node_id not in self.initial:
            known = ", ".join(str(number) for number in sorted(self.initial))
            _refuse(
                "initial",
                f"does not name this node, {self.node_id}, only {known}; add it, or use join to "
                "enter a cluster that runs already",
            )
        if len(self.initial) > MEMBERS_MAX:
            _refuse("initial", f"names {len(self.initial)} members, at most {MEMBERS_MAX}")
        if min(self.initial) < 1 or max(self.initial) > NODE_ID_MAX:
            _refuse("initial", f"has a member number that is not in 1..{NODE_ID_MAX}")
        if len(set(self.initial.values())) < len(self.initial):
            _refuse("initial", "gives two members the same address")
        if self.advertise and self.advertise != self.initial[self.node_id]:
            _refuse(
                "advertise",
                f"is {self.advertise}, but initial has {self.initial[self.node_id]} for this node; "
                "make them equal, or leave advertise out",
            )

    def _check_tls(self) -> None:
        given = [name for name in ("tls_cert", "tls_key", "tls_ca") if getattr(self, name)]
        if given and len(given) < 3:
            missing = sorted({"tls_cert", "tls_key", "tls_ca"} - set(given))
            _refuse(missing[0], f"is needed with {' and '.join(given)}: set all three or none")
        if given and self.insecure:
            _refuse("insecure", "and tls_cert exclude each other: drop one of them")
        for name in ("listen", "metrics_listen"):
            address = getattr(self, name)
            if address and not (self.tls or self.insecure or is_loopback(address)):
                _refuse(
                    name,
                    f"{address} can be reached from other machines: set tls_cert, tls_key and "
                    "tls_ca (`quorate certs` makes them), or accept traffic in the clear with "
                    "insecure",
                )


#: Names of the settings, as in the TOML file.
SETTINGS: Final = tuple(field.name for field in msgspec.structs.fields(NodeConfig))
_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(NodeConfig)}


def _refuse(name: str, problem: str) -> NoReturn:
    raise ConfigError(f"{name} {problem}")


# --- addresses ------------------------------------------------------------------------------------


def _parse(name: str, address: str) -> Endpoint:
    try:
        return parse_endpoint(address)
    except InvalidArgumentError as error:
        raise ConfigError(f"{name}: {error}") from None


def parse_listen(name: str, address: str) -> Endpoint:
    """The host and port to bind; unlike an endpoint's, the port may be 0: any free one.

    Raises:
        ConfigError: not an address, naming the setting *name*.
    """
    if address.endswith(":0"):
        return _parse(name, address[:-1] + "1")._replace(port=0)
    return _parse(name, address)


def is_loopback(address: str) -> bool:
    """Whether nobody beyond this machine can reach the address "host:port"."""
    host = parse_listen("address", address).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


# --- loading --------------------------------------------------------------------------------------


def load_config(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> NodeConfig:
    """Settings from all places, the strongest first. *flags*: by setting name; None: not given.

    A value may be text ("1=db1:7400,2=db2:7400" for ``initial``, "a:7400,b:7400" for ``join``)
    or have its type already.

    Raises:
        ConfigError: an unknown or wrong setting, or a file that cannot be read; the text says
            where it stands.
    """
    found: dict[str, Any] = {}
    if file is not None:
        found.update(read_file(file))
    found.update(read_environment(environment))
    for name, value in flags.items():
        if value is not None:
            found[name] = _typed(name, value, f"--{name.replace('_', '-')}")
    for name, flag in (("node_id", "--id"), ("data", "--data")):
        if name not in found:
            raise ConfigError(
                f"{name} is not set: give {flag}, {ENVIRONMENT_PREFIX}{name.upper()}, or {name} in "
                "the configuration file"
            )
    return NodeConfig(**found)


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings in *environment*. Other variables that begin alike are not ours to judge (container
    systems make some), unless they look like a misspelt setting.

    Raises:
        ConfigError: a misspelt name, or a value of the wrong type.
    """
    found: dict[str, Any] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name in SETTINGS:
            found[name] = _typed(name, environment[variable], variable)
        elif name not in OTHER_VARIABLES and (near := nearest(name, SETTINGS)):
            wanted = ENVIRONMENT_PREFIX + near.upper()
            raise ConfigError(f"environment variable {variable} is no setting; meant {wanted}?")
    return found


#: Variables with our prefix that other parts read.
OTHER_VARIABLES: Final = frozenset(
    {"config", "endpoints", "seed", "rewrite", "timeout", "log_level", "deep"}
)


def read_file(file: Path) -> dict[str, Any]:
    """Settings of a TOML file; relative paths in it are relative to the working directory.

    Raises:
        ConfigError: it cannot be read, is no TOML, has an unknown key or a wrong type.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(CONFIG_FILE_BYTES_MAX + 1)
        if len(text) > CONFIG_FILE_BYTES_MAX:
            raise ConfigError(f"{file} is no configuration: larger than {CONFIG_FILE_BYTES_MAX}")
        content = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    for name in content:
        if name not in SETTINGS:
            near = nearest(name, SETTINGS)
            hint = f"meant {near}?" if near else f"there are {', '.join(SETTINGS)}"
            raise ConfigError(f"{file}: unknown key {name!r}; {hint}")
    return {name: _typed(name, value, f"{file}: {name}") for name, value in content.items()}


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of *names* that *name* most likely was to be, or ""."""
    plain = name.lower().replace("-", "_")
    short = {"id": "node_id", "name": "cluster", "directory": "data", "dir": "data"}
    if plain in short:
        return short[plain]
    found = difflib.get_close_matches(plain, names, 1, _SIMILAR)
    return found[0] if found else ""


def _typed(name: str, value: object, where: str) -> object:
    """*value* as the type of the setting *name*."""
    kind = _TYPES[name]
    try:
        if name == "initial":
            return _founders(value)
        if name in ("join", "machines") and isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, str) and kind is bool:
            return _boolean(value)
        if isinstance(value, str) and kind is int:
            value = int(value)
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        if isinstance(value, str) and kind is int:
            raise ConfigError(f"{where} must be a whole number, not {value!r}") from None
        raise ConfigError(f"{where}: {error}") from None


def _boolean(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in words:
        raise ValueError(f"must be true or false, not {text!r}")
    return words[text.strip().lower()]


def _founders(value: object) -> dict[int, str]:
    """From "1=host:port,2=host:port" or a mapping."""
    shape = "write NUMBER=HOST:PORT for each member, such as 1=db1:7400,2=db2:7400"
    if isinstance(value, str):
        pairs = [item.strip().partition("=") for item in value.split(",") if item.strip()]
        items = [(number.strip(), address.strip()) for number, _, address in pairs]
    elif isinstance(value, Mapping):
        items = [(str(number), address) for number, address in value.items()]
    else:
        raise ValueError(shape)  # noqa: TRY004  # reported as a wrong setting, like all others
    found: dict[int, str] = {}
    for digits, address in items:
        known = digits.isascii() and digits.isdigit() and len(digits) <= 10
        if not (known and address and isinstance(address, str)):
            raise ValueError(f"{digits}={address} names no member: {shape}")
        if int(digits) in found:
            raise ValueError(f"member {digits} is named twice")
        found[int(digits)] = address
    return found
