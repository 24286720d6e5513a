"""What our ports, Arrow Flight servers on the driver, share: address, token, TLS, and how errors travel."""

import hmac
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as flight

from sparknet.config import Cluster
from sparknet.errors import ClusterError, ConfigError, SparkNetError

__all__ = [
    "CHUNK_BYTES",
    "DriverAddress",
    "DriverHost",
    "TokenCheck",
    "errors_for_the_client",
    "read_tls",
    "reason_of",
    "route_to",
]

# A value of Arrow's `binary` ends at 2 GB, and a file need not.
CHUNK_BYTES = 4 << 20
"""Files travel in record batches of at most this size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverHost:
    """Where a port of the driver's is to be."""

    host: str
    """Name or address that workers reach."""
    bind: str = ""
    """Address to listen on, where that is another one (containers, address translation)."""
    port: int = 0
    """0: the kernel gives a free one. One chosen beforehand could be taken before it is bound."""

    def location(self, tls: object) -> str:
        """What a server listens on."""
        return replace(self, host=self.bind or self.host).uri("grpc+tls" if tls else "grpc", self.port)

    def uri(self, scheme: str, port: int) -> str:
        """`scheme://host:port`, with an IPv6 address in brackets."""
        return f"{scheme}://[{self.host}]:{port}" if ":" in self.host else f"{scheme}://{self.host}:{port}"

    def beside(self) -> "DriverHost":
        """The next port."""
        return replace(self, port=self.port + 1) if self.port else self

    def refused(self, what: str, error: Exception) -> ClusterError:
        """What to say where a server cannot listen there."""
        port = f" port {self.port}" if self.port else ""
        remedy = "; or another cluster.driver_port, of which this one may be taken" if self.port else ""
        return ClusterError(
            f"{what} cannot listen on {self.bind or self.host}{port}: {reason_of(error)}; set cluster.driver_host "
            f"to an address of this machine that workers reach{remedy}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverAddress:
    """How to reach a port of the driver's."""

    uri: str
    """`grpc://host:port` or `grpc+tls://host:port`."""
    token: str = field(repr=False)
    """The bearer token; kept out of logs."""
    tls_roots: bytes = field(default=b"", repr=False)
    """PEM certificates to trust, with TLS."""

    def local_host(self) -> str:
        """The address of this machine's interface that leads to the driver.

        Raises:
            ClusterError: no interface does.
        """
        parts = urlsplit(self.uri)
        try:
            return route_to(parts.hostname or "", parts.port or 0)
        except OSError as error:
            raise ClusterError(
                f"there is no way from {socket.gethostname()} to the driver service at {self.uri}: {error}; "
                "workers must reach that address: set cluster.driver_host"
            ) from error

    def connect(self) -> Any:
        """A Flight client; nothing is connected before its first call.

        Raises:
            ClusterError: the address is malformed.
        """
        try:
            roots = {"tls_root_certs": self.tls_roots} if self.tls_roots else {}
            return flight.FlightClient(self.uri, **roots)
        except (OSError, pa.ArrowException) as error:
            raise ClusterError(f"the driver service's address {self.uri} is not usable: {error}") from error

    def options(self, seconds: float) -> Any:
        """Options of a call: the token, and a deadline.

        Every call has one: gRPC sets none, and a host that lost its power never says that it is gone.
        """
        headers = [(b"authorization", f"Bearer {self.token}".encode())]
        return flight.FlightCallOptions(headers=headers, timeout=seconds)


def route_to(host: str, port: int) -> str:
    """The address, of IPv4 or IPv6, of this machine's interface that leads to a host.

    Raises:
        OSError: none does, or nobody has that name.
    """
    failure: OSError | None = None
    for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # a datagram socket sends nothing on connect
                return str(probe.getsockname()[0])
        except OSError as error:  # of a kind that this machine has not
            failure = error
    raise failure or OSError(f"{host} has no address")


class TokenCheck(flight.ServerMiddlewareFactory):  # pyright: ignore[reportUntypedBaseClass]
    """Refuses every call that does not carry the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = f"Bearer {token}"

    def start_call(self, info: Any, headers: dict[str, list[str | bytes]]) -> None:
        """Called by Flight before each call."""
        given = headers.get("authorization", [""])[0]
        # Any byte is a letter of latin-1: a strange header is a wrong token and no exception of the decoder's.
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        # Takes as long for a wrong first letter as for a wrong last one. As bytes: it refuses texts beyond ASCII.
        if not hmac.compare_digest(text.encode(), self._expected.encode()):
            raise flight.FlightUnauthenticatedError("the bearer token is missing or wrong")


@contextmanager
def errors_for_the_client() -> Generator[None]:
    """Send what is raised on purpose, or by a request that makes no sense, without this process's stack."""
    try:
        yield
    except SparkNetError as error:
        raise flight.FlightServerError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise flight.FlightServerError(f"the request is not understood ({error!r})") from error


def reason_of(error: Exception) -> str:
    """An error's words without gRPC's record of the call: a line of JSON with positions in C++ files."""
    return str(error).split(". gRPC client debug context", 1)[0].split(". Client context", 1)[0]


def read_tls(cluster: Cluster) -> tuple[bytes, bytes] | None:
    """Certificate and key, or None where TLS is not asked for.

    Raises:
        ConfigError: a file cannot be read.
    """
    paths = {"cluster.tls_certificate": cluster.tls_certificate, "cluster.tls_key": cluster.tls_key}
    if not any(paths.values()):
        return None
    read: list[bytes] = []
    for key, path in paths.items():
        try:
            read.append(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{key} is {path!r}, which cannot be read: {error.strerror or error}; give a PEM file"
            ) from error
    return read[0], read[1]
