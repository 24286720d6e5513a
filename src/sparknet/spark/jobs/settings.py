"""Whose word counts for a session: the submitter's, where there is one, and ours where there is none.

spark-submit, `spark-defaults.conf`, `PYSPARK_SUBMIT_ARGS` and the environment all end in the Java machine's own
settings, which Spark has already put in order: what is found there is what the submitter said.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from sparknet.config import Cluster
from sparknet.errors import ConfigError

__all__ = [
    "agreed_master",
    "check_settings",
    "is_local",
    "may_be_submitted",
    "missing_settings",
    "refuse_settings",
]

UNSAID_MASTER = "local[*]"
"""What Spark puts where nobody names a master."""
_TASK_FAILURES = 4
"""How often a task of an embedded session may fail: as on Spark's clusters. `local[N]` alone allows it once."""
_SHELL = "pyspark-shell"
"""What Spark calls an application that nobody gave a name."""
_MUST_NOT = {
    "spark.speculation": "a copy of a healthy worker would take its slot from it",
    "spark.python.worker.killOnIdleTimeout": "a worker gives Spark nothing until it ends, and would be killed",
    "spark.sql.execution.pyspark.udf.killOnIdleTimeout": "a worker gives Spark nothing until it ends, and would be "
    "killed",
}
"""Settings that must not be true, and why."""


def is_local(master: str) -> bool:
    """Whether this master's tasks are threads and children of the driver."""
    return master == "local" or master.startswith("local[")


def may_be_submitted() -> bool:
    """Whether there is anything by which a submitter could have said something; no Java machine is asked."""
    # spark-submit, a notebook's kernel, the two places where Spark itself looks for a master, and a server.
    names = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "MASTER", "SPARK_REMOTE")
    home = os.environ.get("SPARK_HOME") or str(Path(pyspark.__file__).parent)
    place = Path(os.environ.get("SPARK_CONF_DIR") or Path(home) / "conf")
    files = ("spark-defaults.conf", "spark-env.sh")
    return any(os.environ.get(name) for name in names) or any((place / name).exists() for name in files)


def agreed_master(cluster: Cluster, said: Mapping[str, str], *, workers: int) -> str:
    """The master of a session that is to be opened.

    Args:
        cluster: `master` is ours, if any.
        said: Spark's own settings before the session, `SparkConf().getAll()`.
        workers: cores of an embedded session.

    Raises:
        ConfigError: two masters are named, or a Spark Connect server.
    """
    server = said.get("spark.remote") or (cluster.master if cluster.master.startswith("sc://") else "")
    if server:
        raise ConfigError(
            f"the master is {server}, a Spark Connect server, and a session that is opened here is a classic one: "
            "open it yourself, SparkSession.builder.remote(URL).getOrCreate(), and call sparknet in it"
        )
    master = said.get("spark.master", UNSAID_MASTER)
    if master == UNSAID_MASTER:
        return cluster.master or f"local[{workers},{_TASK_FAILURES}]"
    _must_agree(cluster, master, "spark-submit, PYSPARK_SUBMIT_ARGS or spark-defaults.conf")
    return master


def missing_settings(
    cluster: Cluster, said: Mapping[str, str], *, master: str, name: str, preimport: str
) -> dict[str, str]:
    """Our settings of a session that is to be opened, without those that the submitter has made.

    Args:
        cluster: what concerns Spark.
        said: as for `agreed_master`.
        master: the session's.
        name: what the application is called, after "sparknet".
        preimport: modules which are imported before workers are forked; empty: those of training.
    """
    ours = {
        "spark.app.name": f"sparknet {name}",
        "spark.ui.enabled": "false",
        "spark.log.level": cluster.spark_log_level,
        "spark.python.daemon.module": "sparknet.spark.running.preimport",
        "spark.executorEnv.PYTHONHASHSEED": "0",
    }
    if preimport:
        ours["spark.executorEnv.SPARKNET_PREIMPORT"] = preimport
    host = "127.0.0.1" if master.startswith("local") else cluster.driver_host
    host = f"[{host}]" if ":" in host else host  # as Spark writes IPv6
    # Not the one without the other: a submitter's address may be none that this machine can bind.
    if host and "spark.driver.host" not in said and "spark.driver.bindAddress" not in said:
        ours["spark.driver.host"] = host
        if master.startswith("local"):
            ours["spark.driver.bindAddress"] = host
    unsaid = {key: value for key, value in ours.items() if key not in said}
    if said.get("spark.app.name") == _SHELL:
        unsaid["spark.app.name"] = ours["spark.app.name"]
    # Spark sets it itself for an application without a file, and its bar would be drawn over ours.
    unsaid["spark.ui.showConsoleProgress"] = "false"
    return unsaid


def check_settings(cluster: Cluster, spark: SparkSession, submitted: Mapping[str, str]) -> None:
    """Hold a session that somebody else has opened, or we, against what a run needs.

    Args:
        cluster: `master` is ours, if any.
        spark: the session.
        submitted: as for `agreed_master`; empty for a session over Spark Connect.

    Raises:
        ConfigError: it is on another master than ours; it is local, although the submitter named a cluster; or a
            setting would end healthy workers.
    """
    master = spark.conf.get("spark.master", "") or ""
    if master:
        _must_agree(cluster, master, "the Spark session that is open")
    named = submitted.get("spark.master", master)
    if is_local(master) and not is_local(named):
        raise ConfigError(
            f"the Spark session's master is {master} and the application was submitted to {named}; it would train "
            "on one machine: leave the master out where the session is made"
        )
    refuse_settings({key: spark.conf.get(key, "false") or "false" for key in _MUST_NOT})


def refuse_settings(said: Mapping[str, str]) -> None:
    """Refuse settings that would end healthy workers.

    Raises:
        ConfigError: there is one; names it and why.
    """
    for key, reason in _MUST_NOT.items():
        if said.get(key, "false").lower() == "true":
            raise ConfigError(f"{key} is true; {reason}: set {key}=false, or leave it out")


def _must_agree(cluster: Cluster, master: str, who: str) -> None:
    if cluster.master and cluster.master != master:
        raise ConfigError(
            f"cluster.master is {cluster.master} and {who} says {master}; there can be one: leave cluster.master "
            "out, or give both the same"
        )
