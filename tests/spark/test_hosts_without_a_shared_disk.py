"""Training on hosts that share no directory: nothing is between them but Spark and the ports of the driver."""

import json
import tempfile
from pathlib import Path

import pytest

from netlab import Cluster, Netlab, reason_against
from places import REPOSITORY

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(reason_against()), reason=reason_against() or "hosts can be made"),
]

PROGRAM = """
import json, sys
from pathlib import Path
from sparknet.config import load_config
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

settings = json.loads(sys.argv[1])
config = load_config(Path(sys.argv[2]), settings)
notes, hosts = [], set()

def observe(record):
    if record["event"] == "note":
        notes.append(record["message"])
    if record["event"] == "worker_joined":
        hosts.add(record["host"])

with RunDir.create(Path("/tmp/run"), config) as run_dir:
    result = train(config, run_dir, observers=[observe])
    shards = sorted(path.name for path in (run_dir.path / "store").rglob("*.arrow"))
    left = sorted(path.name for path in (run_dir.path / "store").iterdir() if path.name.startswith("."))
print("FOUND", json.dumps([result.accuracy, result.failures, notes, sorted(hosts), shards, left]))
"""


def test_two_hosts_train_from_the_drivers_own_disk():
    # Not below the private directories: logs are what the test itself reads.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as logs, Netlab(3, private=[Path("/tmp")]) as lab:
        cluster = Cluster(lab, Path(logs), {2: 1, 3: 1})
        settings = [
            "run.workers=2",
            "run.rounds=40",
            f"cluster.master={cluster.url!r}",
            f"cluster.driver_host={lab.addresses[0]!r}",
            "data.shard_megabytes=0.02",
            "data.cache='/tmp/cache'",
            # The data set is larger than half of it: each worker reads few shards in an epoch.
            "data.cache_gigabytes=0.0002",
        ]
        told = cluster.drive(PROGRAM, json.dumps(settings), str(REPOSITORY / "configs" / "digits.toml"))
        line = next(line for line in told.splitlines() if line.startswith("FOUND "))
        accuracy, failures, notes, hosts, shards, left = json.loads(line.removeprefix("FOUND "))
        assert accuracy > 0.9
        assert failures == 0
        assert hosts == lab.names[1:]
        assert sum("is not shared with the workers: shards go through the driver" in note for note in notes) == 1
        assert len([name for name in shards if name.startswith("train")]) >= 4
        assert left == []
        for host in (2, 3):
            kept = lab.run(host, "sh", "-c", "ls /tmp/cache/sparknet-0").split()
            assert kept
            assert all(len(name) == 64 for name in kept)
            left = lab.run(host, "sh", "-c", "ls /tmp").split()
            assert not [name for name in left if name == "run" or name.startswith("sparknet-prepare-")]
            used = int(lab.run(host, "sh", "-c", "cat /tmp/cache/sparknet-0/* | wc -c"))
            assert used <= 200_000
