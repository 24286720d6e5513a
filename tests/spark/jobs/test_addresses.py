"""Which address the workers reach: candidates, the trial itself, and whole runs on hosts with strange names."""

import json
import socket
import tempfile
from pathlib import Path

import pyarrow.flight as flight
import pytest

from digits import Story, open_test_session, run_digits
from netlab import Cluster as LabCluster
from netlab import Netlab, reason_against
from places import REPOSITORY
from sparknet.config import Cluster
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.jobs import addresses
from sparknet.spark.jobs.addresses import candidates, find_driver_host
from sparknet.spark.jobs.ports import DriverAddress, DriverHost

hosts = pytest.mark.skipif(bool(reason_against()), reason=reason_against() or "hosts can be made")


class Session:
    """As much of a session as is asked: its settings."""

    def __init__(self, **conf):
        self.conf = {f"spark.{key.replace('_', '.')}": value for key, value in conf.items()}


@pytest.fixture
def names(monkeypatch):
    """A resolver, and interfaces, of a machine whose own name is a loopback address, as Debian installs it."""
    known = {"box": "127.0.1.1", "master": "192.0.2.77", "box.lan": "192.0.2.9"}

    def resolve(host, port, *_, **__):
        if host not in known:
            raise socket.gaierror(f"{host} is unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port or 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getfqdn", lambda: "box.lan")
    monkeypatch.setattr(
        addresses, "_interfaces", lambda: iter(["127.0.0.1", "192.0.2.9", "fe80::1", "2001:db8::9"])
    )
    monkeypatch.setattr(addresses, "_route", lambda host, port: ["192.0.2.8"] if host == "master" else [])
    return known


def test_what_may_be_right_and_in_which_order(names):
    spark = Session(master="spark://master:7077,other:7077", driver_host="192.0.2.5")
    assert candidates(Cluster(), spark) == ["192.0.2.5", "192.0.2.8", "192.0.2.9", "2001:db8::9"]
    assert candidates(Cluster(), Session(master="k8s://https://master:6443")) == [
        *("192.0.2.8", "192.0.2.9", "2001:db8::9")
    ]
    assert candidates(Cluster(), Session(master="yarn")) == ["192.0.2.9", "2001:db8::9"], "no loopback, no link"
    names["box"] = "192.0.2.7"
    assert candidates(Cluster(), Session(master="yarn"))[0] == "192.0.2.7"


def test_who_names_an_address_gets_that_one(names):
    spark = Session(master="spark://master:7077", driver_host="192.0.2.5")
    assert candidates(Cluster(driver_host="driver.example"), spark) == ["driver.example"]


def test_a_certificate_is_made_out_to_a_name(names):
    spark = Session(master="yarn")
    assert candidates(Cluster(tls_certificate="c.pem", tls_key="k.pem"), spark)[:2] == ["box", "box.lan"]


def test_tasks_of_this_process_are_not_asked():
    assert find_driver_host(Session(master="local[2]"), Cluster(), workers=2) == DriverHost(
        host="127.0.0.1", bind="127.0.0.1"
    )
    given = find_driver_host(Session(master="local"), Cluster(driver_host="::1", driver_port=7337), workers=2)
    assert given == DriverHost(host="::1", bind="::1", port=7337)


def test_a_name_and_a_foreign_address_are_listened_for_everywhere():
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    for host in ("localhost", "203.0.113.1"):
        assert find_driver_host(Session(master="local"), Cluster(driver_host=host), workers=1).bind == everywhere
    spark = Session(master="local", driver_bindAddress="10.9.9.9")
    assert find_driver_host(spark, Cluster(driver_host="203.0.113.1"), workers=1).bind == "10.9.9.9"


def test_addresses_in_brackets():
    assert DriverHost(host="::1").uri("grpc", 7) == "grpc://[::1]:7"
    assert DriverHost(host="a", bind="::", port=7).location(None) == "grpc://[::]:7"
    assert DriverHost(host="a", port=7).beside().location(tls=("c", "k")) == "grpc+tls://a:8"
    assert DriverHost(host="a").beside().port == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_interface_that_leads_to_the_driver(host):
    found = DriverAddress(uri=DriverHost(host=host).uri("grpc", 7), token="t").local_host()
    assert found in (("127.0.0.1", "::1") if host == "localhost" else (host,))


def test_a_port_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"cluster\.driver_port is 65535; it must be 0 or a port below 65535"):
        Cluster(driver_port=65535)


# With workers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark():
    session = open_test_session("local-cluster[2,1,1024]", spark_executor_memory="512m")
    yield session
    session.stop()


@pytest.mark.spark
def test_what_workers_reach_is_used(spark, monkeypatch):
    assert find_driver_host(spark, Cluster(), workers=2) == DriverHost(host="127.0.0.1", bind="127.0.0.1")
    # Nobody listens at the first one; the second one is a name of this machine.
    monkeypatch.setattr(addresses, "candidates", lambda *_: ["203.0.113.1", "localhost", "::1"])
    assert find_driver_host(spark, Cluster(), workers=2).host == "localhost"
    assert find_driver_host(spark, Cluster(), workers=2).port == 0


@pytest.mark.spark
def test_one_error_names_what_was_tried_and_the_remedy(spark):
    port = free_pair()
    with pytest.raises(ClusterError) as raised:
        find_driver_host(spark, Cluster(driver_host="203.0.113.1", driver_port=port), workers=2)
    told = str(raised.value)
    assert f"203.0.113.1 at port {port} and {port + 1} were tried, and {socket.gethostname()} reaches none" in told
    assert "set cluster.driver_host" in told
    assert "cluster.driver_port" in told


@pytest.mark.spark
def test_a_port_that_is_taken_is_told(spark):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"cannot listen on .* port {port}: .*another cluster\.driver_port"):
            find_driver_host(spark, Cluster(driver_port=port), workers=2)


@pytest.mark.spark
def test_who_listens_there_without_knowing_the_token_is_nobody():
    class Stranger(flight.FlightServerBase):
        def do_action(self, context, action):
            raise flight.FlightUnauthenticatedError("who are you?")

    with Stranger("grpc://127.0.0.1:0") as stranger:
        tried = {"127.0.0.1": (DriverAddress(uri=f"grpc://127.0.0.1:{stranger.port}", token="t"),)}
        assert list(addresses.try_addresses(tried, iter([]))) == [{"reached": []}]


@pytest.mark.spark
def test_a_run_over_ipv6_alone(spark, tmp_path):
    """The service, the store and gloo are at ::1 and nowhere else."""
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=3", "cluster.driver_host='::1'")
    assert result.rounds == 3
    assert len(story.of("worker_joined")) == 2


PROGRAM = """
import json, sys
from pathlib import Path
from sparknet.config import load_config
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir
import sparknet.spark.running.run as running

found = []
find = running.find_driver_host
def recorded(*arguments, **named):
    found.append(find(*arguments, **named))
    return found[-1]
running.find_driver_host = recorded
config = load_config(Path(sys.argv[2]), json.loads(sys.argv[1]))
with RunDir.create(Path(sys.argv[3]), config) as run_dir:
    result = train(config, run_dir)
print("FOUND", json.dumps([result.rounds, found[0].host, found[0].port]))
"""
DIGITS = str(REPOSITORY / "configs" / "digits.toml")


def found_in(told):
    return json.loads(next(line for line in told.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND "))


@hosts
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_whose_name_is_a_loopback_address(tmp_path):
    """Host 1 is 127.0.1.1 to itself and says so to Spark; a fixed pair of ports is used."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as logs, Netlab(2, private=[Path("/tmp")]) as lab:
        cluster = LabCluster(lab, Path(logs), {2: 2})
        told = Path(f"/etc/netns/{lab.names[0]}/hosts")
        told.write_text(f"127.0.0.1 localhost\n127.0.1.1 {lab.names[0]}\n{lab.addresses[1]} {lab.names[1]}\n")
        settings = ["run.workers=2", "run.rounds=3", f"cluster.master={cluster.url!r}", "cluster.driver_port=7337"]
        rounds, host, port = found_in(cluster.drive(PROGRAM, json.dumps(settings), DIGITS, "/tmp/run"))
        assert (rounds, host, port) == (3, lab.addresses[0], 7337)


def free_pair():
    """A port that is free, and the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
