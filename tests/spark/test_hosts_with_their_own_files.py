"""Training on hosts of which each has databases of its own, under the same path, and no shared directory."""

import json
import sys
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

MAKE = """
import sys
from pathlib import Path
import numpy as np
from sklearn.datasets import load_digits
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources import datum

images, labels = load_digits(return_X_y=True)
wanted = [int(digit) for digit in sys.argv[1]]
rows = np.flatnonzero(np.isin(labels, wanted))
for number, part in enumerate(np.array_split(rows, 2)):
    with DatabaseWriter(Path(f"/tmp/lmdb0{number}")) as writer:
        for row in part:
            pixels = images[row].astype(np.uint8).tobytes()
            writer.append(datum.write(shape=(1, 8, 8), data=pixels, label=int(labels[row])))
print(len(rows))
"""

PROGRAM = """
import json, sys
from pathlib import Path
from sparknet.config import load_config
from sparknet.errors import SparkNetError
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

settings, place = json.loads(sys.argv[1]), Path(sys.argv[3])
events = []

def observe(record):
    events.append(record)

try:
    if place.exists():
        from sparknet.config import override
        with RunDir.reopen(place) as run_dir:
            config = override(run_dir.load_config(), settings)
            (run_dir.path / "result.json").unlink(missing_ok=True)
            result = train(config, run_dir, observers=[observe])
    else:
        config = load_config(Path(sys.argv[2]), settings)
        with RunDir.create(place, config) as run_dir:
            result = train(config, run_dir, observers=[observe])
    told = [result.accuracy, result.failures, result.rounds]
except SparkNetError as error:
    told = str(error)
hosts = sorted({event["host"] for event in events if event["event"] == "worker_joined"})
notes = [event["message"] for event in events if event["event"] == "note"]
print("FOUND", json.dumps([told, hosts, notes]))
"""


def _make(lab, host, digits):
    """Two databases with all rows of some digits, in a host's own directory; how many rows they have."""
    return int(lab.run(host, sys.executable, "-c", MAKE, digits))


def _drive(cluster, settings, place):
    told = cluster.drive(PROGRAM, json.dumps(settings), str(REPOSITORY / "configs" / "digits.toml"), place)
    line = [line for line in told.splitlines() if line.startswith("FOUND ")][-1]
    return json.loads(line.removeprefix("FOUND "))


def _settings(lab, cluster, *more):
    return [
        "run.workers=2",
        "data.source='lmdb'",
        "data.path='/tmp/lmdb0*'",
        "data.on_hosts=true",
        "data.store='/tmp/store'",
        "data.shard_megabytes=0.02",
        "data.cache='/tmp/cache'",
        f"cluster.master={cluster.url!r}",
        f"cluster.driver_host={lab.addresses[0]!r}",
        *more,
    ]


def _shards(lab, host):
    """Training shards below the store of a host: their sizes by name."""
    found = lab.run(
        host, "sh", "-c", "find /tmp/store -name 'train-*.arrow' -printf '%f %s\\n' 2>/dev/null || true"
    )
    return dict(line.split() for line in found.splitlines())


def test_each_host_trains_on_its_own_databases():
    # Not below the private directories: logs are what the test itself reads.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as logs, Netlab(3, private=[Path("/tmp")]) as lab:
        # Each host has digits that the other one has not: a net that knows all ten has learned of both.
        rows = {2: _make(lab, 2, "01234"), 3: _make(lab, 3, "56789")}
        assert sum(rows.values()) == 1797
        cluster = Cluster(lab, Path(logs), {2: 1, 3: 1})
        (accuracy, failures, rounds), hosts, notes = _drive(
            cluster, _settings(lab, cluster, "run.rounds=40"), "/tmp/run"
        )
        assert accuracy > 0.9
        assert (failures, rounds) == (0, 40)
        assert hosts == lab.names[1:]
        assert not [note for note in notes if "not shared" in note]
        shards = {host: _shards(lab, host) for host in (1, 2, 3)}
        # What was made on a host stays there, and nothing else.
        assert not shards[1]
        assert shards[2]
        assert shards[3]
        assert not shards[2].keys() & shards[3].keys()
        manifest = json.loads(lab.run(1, "sh", "-c", "cat /tmp/store/*/manifest.json"))
        named = {Path(shard["path"]).name: shard for shard in manifest["train"]}
        assert named.keys() == shards[2].keys() | shards[3].keys()
        held = sum(shard["rows"] for shard in manifest["validation"])
        for host in (2, 3):
            assert rows[host] * 0.75 < sum(named[name]["rows"] for name in shards[host]) < rows[host] * 0.85
        assert held + sum(shard["rows"] for shard in named.values()) == 1797
        # Resumed, nothing is prepared again, and each slot goes on.
        (accuracy, failures, rounds), *_ = _drive(cluster, ["run.rounds=44"], "/tmp/run")
        assert accuracy > 0.9
        assert (failures, rounds) == (0, 44)
        assert {host: _shards(lab, host) for host in (1, 2, 3)} == shards


def test_a_host_without_files_is_refused_by_name():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as logs, Netlab(3, private=[Path("/tmp")]) as lab:
        _make(lab, 2, "01234")
        cluster = Cluster(lab, Path(logs), {2: 1, 3: 1})
        told, *_ = _drive(cluster, _settings(lab, cluster), "/tmp/run")
        assert f"host {lab.names[2]}: /tmp/lmdb0*: no LMDB database" in told
        assert "every host has files there" in told
