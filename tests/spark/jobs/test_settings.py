"""Whose word counts for a session, without a session."""

import pytest

from sparknet.config import Cluster
from sparknet.errors import ConfigError
from sparknet.spark.jobs.settings import (
    agreed_master,
    check_settings,
    is_local,
    may_be_submitted,
    missing_settings,
    refuse_settings,
)

SHELL = {"spark.app.name": "pyspark-shell", "spark.master": "local[*]", "spark.ui.showConsoleProgress": "true"}
"""What Spark has by itself."""
ENVIRONMENT = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "MASTER", "SPARK_REMOTE", "SPARK_CONF_DIR")


class Session:
    """As much of a session as is asked: its settings."""

    def __init__(self, **conf):
        self.conf = {f"spark.{key.replace('_', '.')}": value for key, value in conf.items()}


def master(ours="", **said):
    said = {f"spark.{key}": value for key, value in said.items()}
    return agreed_master(Cluster(master=ours), {**SHELL, **said}, workers=3)


def test_the_submitters_master_counts_and_ours_only_where_he_names_none():
    assert master() == "local[3,4]"
    assert master("spark://a:7077") == "spark://a:7077"
    assert master(master="yarn") == "yarn"
    assert master("yarn", master="yarn") == "yarn"
    assert agreed_master(Cluster(), {}, workers=2) == "local[2,4]"


def test_two_masters_are_refused_and_both_named():
    with pytest.raises(
        ConfigError, match=r"cluster\.master is spark://a:7077 and spark-submit.* says yarn; there can"
    ):
        master("spark://a:7077", master="yarn")


@pytest.mark.parametrize(("ours", "said"), [("sc://h:15002", {}), ("", {"remote": "sc://h:15002"})])
def test_a_connect_server_is_named_and_never_replaced_by_this_machine(ours, said):
    with pytest.raises(ConfigError, match=r"the master is sc://h:15002, .*SparkSession\.builder\.remote"):
        master(ours, **said)


def ours(said, *, master="local[2,4]", preimport="", **cluster):
    return missing_settings(Cluster(**cluster), said, master=master, name="x", preimport=preimport)


def test_our_settings_are_for_where_the_submitter_says_nothing():
    alone = ours(SHELL, preimport="json")
    assert alone["spark.app.name"] == "sparknet x"
    assert "spark.task.maxFailures" not in alone, "how often a worker may fail is the run's to count"
    assert alone["spark.executorEnv.SPARKNET_PREIMPORT"] == "json"
    assert alone["spark.ui.showConsoleProgress"] == "false"
    his = {key: "his" for key in alone if key != "spark.ui.showConsoleProgress"}
    assert ours({**SHELL, **his}, preimport="json") == {"spark.ui.showConsoleProgress": "false"}


def test_the_drivers_address_is_ours_only_as_a_whole():
    key, bind = "spark.driver.host", "spark.driver.bindAddress"
    assert {key: "127.0.0.1", bind: "127.0.0.1"}.items() <= ours(SHELL).items()
    for said in (key, bind):
        assert not {key, bind} & ours({**SHELL, said: "10.0.0.1"}).keys()
    told = ours(SHELL, master="yarn", driver_host="10.0.0.1")
    assert told[key] == "10.0.0.1"
    assert bind not in told
    assert key not in ours(SHELL, master="yarn")


@pytest.mark.parametrize(
    "key",
    [
        "spark.speculation",
        "spark.python.worker.killOnIdleTimeout",
        "spark.sql.execution.pyspark.udf.killOnIdleTimeout",
    ],
)
def test_what_would_end_healthy_workers_is_refused_by_name(key):
    refuse_settings({key: "false"})
    with pytest.raises(ConfigError, match=rf"{key} is true; .*: set {key}=false"):
        refuse_settings({key: "True"})
    session = Session(master="yarn")
    session.conf[key] = "true"
    with pytest.raises(ConfigError, match=f"{key} is true"):
        check_settings(Cluster(), session, {})


def test_an_open_session_must_be_on_the_master_that_was_named():
    check_settings(Cluster(), Session(master="local[2]"), SHELL)
    check_settings(Cluster(master="yarn"), Session(master="yarn"), {"spark.master": "yarn"})
    check_settings(Cluster(), Session(), {})
    with pytest.raises(
        ConfigError, match=r"cluster\.master is yarn and the Spark session that is open says local\[2\]"
    ):
        check_settings(Cluster(master="yarn"), Session(master="local[2]"), SHELL)
    with pytest.raises(
        ConfigError, match=r"session's master is local\[2\] and the application was submitted to yarn"
    ):
        check_settings(Cluster(), Session(master="local[2]"), {"spark.master": "yarn"})


def test_a_local_cluster_is_not_this_process():
    assert is_local("local")
    assert is_local("local[2]")
    assert not is_local("local-cluster[2,1,1024]")
    assert not is_local("yarn")


def test_who_can_have_said_something_is_known_without_java(tmp_path, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    assert not may_be_submitted()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "spark-defaults.conf").touch()
    assert may_be_submitted()
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    assert not may_be_submitted()
    for name in ENVIRONMENT[:4]:
        with monkeypatch.context() as one:
            one.setenv(name, "x")
            assert may_be_submitted(), name
