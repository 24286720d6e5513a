"""Which address of this machine the workers reach: tried by a small job, before anything depends on it.

Spark's own address of the driver is right where executors come to the driver, and unknown to a client of Spark
Connect; a host's name often stands for a loopback address; and a firewall tells nobody. So what may be right is
tried from where the workers are, with a token, and what all of them reach is used.
"""

import fcntl
import functools
import ipaddress
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as flight
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparknet.config import Cluster
from sparknet.errors import ClusterError
from sparknet.spark.jobs.jobs import Report, collect_reports, numbered, stay
from sparknet.spark.jobs.ports import DriverAddress, DriverHost, TokenCheck, read_tls, route_to
from sparknet.spark.jobs.settings import is_local

__all__ = ["candidates", "find_driver_host"]

_LOOPBACK = "127.0.0.1"
_CALL_SECONDS = 5.0
_SIOCGIFADDR = 0x8915
_IPV6_INTERFACES = Path("/proc/net/if_inet6")


def find_driver_host(spark: SparkSession, cluster: Cluster, *, workers: int) -> DriverHost:
    """Where the ports of this process are to be, so that all workers reach them.

    Args:
        spark: the session, classic or Connect.
        cluster: `driver_host`, if given, is the one that is tried, and `driver_port` the port.
        workers: how many tasks try.

    Raises:
        ClusterError: no address is reached by all of them, the port is taken, or Spark has no cores for them in
            `start_seconds`.
        ConfigError: the certificate cannot be read.
    """
    port = cluster.driver_port
    if not is_remote() and is_local(spark.conf.get("spark.master", "") or ""):
        # Its tasks are processes of this machine.
        host = cluster.driver_host or _LOOPBACK
        return DriverHost(host=host, bind=_bind_for(host, spark), port=port)
    tls, token = read_tls(cluster), secrets.token_urlsafe(32)
    hosts = candidates(cluster, spark)
    with ExitStack() as held:
        # The store's too, where somebody has to open them in a firewall.
        probes = [
            held.enter_context(_Probe(DriverHost(host=_everywhere(), port=one), token, tls))
            for one in ([port, port + 1] if port else [0])
        ]
        ports = [probe.port for probe in probes]
        scheme, roots = ("grpc+tls", tls[0]) if tls else ("grpc", b"")
        tried = {
            host: tuple(
                DriverAddress(uri=DriverHost(host=host).uri(scheme, one), token=token, tls_roots=roots)
                for one in ports
            )
            for host in hosts
        }
        task = functools.partial(try_addresses, tried)
        reports = collect_reports(
            numbered(spark, workers, tasks=workers),
            task,
            doing="calling the driver",
            # The first of all jobs: where Spark has no cores to give, this one waits and no later one.
            limit_seconds=cluster.start_seconds,
        )
    reached = [host for host in hosts if all(host in report.values["reached"] for report in reports)]
    if not reached:
        raise _nobody(hosts, ports, reports)
    return DriverHost(host=reached[0], bind=_bind_for(reached[0], spark), port=port)


def candidates(cluster: Cluster, spark: SparkSession) -> list[str]:
    """Addresses that may be right, the likeliest first."""
    if cluster.driver_host:
        return [cluster.driver_host]
    found: list[str] = []
    if is_remote():
        found += _route(str(getattr(spark, "client").host), 443)  # noqa: B009 - a Connect session alone has it
    else:
        # Executors had to come there, so a port beside it has every chance: whatever it is, loopback too.
        found.append(spark.conf.get("spark.driver.host", "") or "")
        for master in (spark.conf.get("spark.master", "") or "").removeprefix("k8s://").split(","):
            parts = urlsplit(master if "://" in master else "")
            found += _route(parts.hostname or "", parts.port or 443)
    name = socket.gethostname()
    if cluster.tls_certificate:
        found += [name, socket.getfqdn()]  # what a certificate is made out to
    found += [one for one in (*_addresses_of(name), *_interfaces()) if _leads_here(one)]
    return list(dict.fromkeys(one for one in found if one))


def try_addresses(
    tried: dict[str, tuple[DriverAddress, ...]], batches: Iterator[pa.RecordBatch]
) -> Iterator[dict[str, Any]]:
    """The task: says which addresses it reaches."""
    for _ in batches:
        pass
    stay()
    with ThreadPoolExecutor(len(tried)) as threads:
        reached = threads.map(lambda addresses: all(map(_answers, addresses)), tried.values())
        yield {"reached": [host for host, there in zip(tried, reached, strict=True) if there]}


def _answers(address: DriverAddress) -> bool:
    try:
        with closing(address.connect()) as client:
            list(client.do_action(flight.Action("reach", b""), address.options(_CALL_SECONDS)))
    except (OSError, pa.ArrowException, ClusterError):
        return False  # nobody, or somebody else, who does not know the token
    return True


class _Probe(flight.FlightServerBase):  # pyright: ignore[reportUntypedBaseClass]
    """Answers whoever has the token."""

    def __init__(self, at: DriverHost, token: str, tls: tuple[bytes, bytes] | None) -> None:
        try:
            super().__init__(
                at.location(tls),
                tls_certificates=[tls] if tls else None,
                middleware={"token": TokenCheck(token)},
            )
        except (OSError, pa.ArrowException) as error:
            raise at.refused("the driver", error) from error

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Answer."""
        return []


def _nobody(hosts: Sequence[str], ports: Sequence[int], reports: Sequence[Report]) -> ClusterError:
    told = ", ".join(dict.fromkeys(f"{r.host} reaches {', '.join(r.values['reached']) or 'none'}" for r in reports))
    at = " and ".join(map(str, ports))
    return ClusterError(
        f"workers do not reach this machine: {', '.join(hosts)} at port {at} were tried, and {told}; set "
        "cluster.driver_host to an address of this machine that all of them reach, and let them through to its "
        "ports: cluster.driver_port=7337 fixes these as 7337 and 7338"
    )


def _bind_for(host: str, spark: SparkSession) -> str:
    """Where to listen: at that very address if it is one of this machine's, and no name of it."""
    with suppress(ValueError, OSError):
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((host, 0))
            return host
    # A name may stand for another address here than where the workers are, and behind a translation of addresses
    # this machine has none of that kind. A remote session's settings are those of the server's machine.
    return ("" if is_remote() else spark.conf.get("spark.driver.bindAddress", "") or "") or _everywhere()


def _everywhere() -> str:
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _route(host: str, port: int) -> list[str]:
    """The address of the interface that leads to a host; none if nothing does."""
    try:
        return [route_to(host, port)] if host else []
    except OSError:
        return []


def _addresses_of(name: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []  # the name stands for nothing


def _interfaces() -> Iterator[str]:
    """The addresses of this machine's interfaces, where the kernel tells them as Linux does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                told = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield socket.inet_ntoa(told[20:24])
    with suppress(OSError):
        for line in _IPV6_INTERFACES.read_text(encoding="ascii").splitlines():
            yield str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))


def _leads_here(address: str) -> bool:
    """Whether another machine could come here by it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (found.is_loopback or found.is_link_local)
