#!/bin/sh
# A run on YARN, with the driver on this machine: its progress is on this screen.
#
#     HADOOP_CONF_DIR=/etc/hadoop/conf examples/clusters/yarn_client.sh 4 configs/digits.toml --run-dir /shared/digits
#
# 4 executors of one core each, a worker in each. This machine must be reachable from the nodes. Run it in an activated
# environment with sparknet[pack] in it, whose Python stands at the same path on every node.
set -eu
: "${HADOOP_CONF_DIR:?it is not set; it is the directory of core-site.xml and yarn-site.xml}"
workers=$1
shift
here=$(cd "$(dirname "$0")/../.." && pwd)
archive=${ARCHIVE:-sparknet-env.tar.gz}
python=$(command -v python) || {
    echo "$0: there is no python; activate the environment first" >&2
    exit 1
}

[ -e "$archive" ] || sparknet pack "$archive"

export PYSPARK_DRIVER_PYTHON="$python" PYSPARK_PYTHON=./environment/bin/python
exec spark-submit \
    --master yarn \
    --deploy-mode client \
    --num-executors "$workers" \
    --executor-cores 1 \
    --executor-memory "${EXECUTOR_MEMORY:-2g}" \
    --conf spark.executor.memoryOverhead="${WORKER_MEMORY:-4g}" \
    --archives "$archive#environment" \
    "$here/apps/train.py" "$@" --workers "$workers"
