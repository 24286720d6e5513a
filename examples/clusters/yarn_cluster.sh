#!/bin/sh
# A run on YARN, with the driver on a node of the cluster: this machine may go away.
#
#     HADOOP_CONF_DIR=/etc/hadoop/conf examples/clusters/yarn_cluster.sh 4 configs/digits.toml --run-dir /shared/digits
#
# The configuration travels with the job; the run directory must be one that all nodes share, for the driver's own
# directory goes with it. Follow the run with `yarn logs -applicationId ID`, or by its training log.
set -eu
: "${HADOOP_CONF_DIR:?it is not set; it is the directory of core-site.xml and yarn-site.xml}"
workers=$1 config=$2
shift 2
here=$(cd "$(dirname "$0")/../.." && pwd)
archive=${ARCHIVE:-sparknet-env.tar.gz}

[ -e "$archive" ] || sparknet pack "$archive"

# Here the driver is one of the cluster's processes too, with the archive's Python.
unset PYSPARK_DRIVER_PYTHON
export PYSPARK_PYTHON=./environment/bin/python
exec spark-submit \
    --master yarn \
    --deploy-mode cluster \
    --num-executors "$workers" \
    --executor-cores 1 \
    --executor-memory "${EXECUTOR_MEMORY:-2g}" \
    --driver-memory 2g \
    --conf spark.executor.memoryOverhead="${WORKER_MEMORY:-4g}" \
    --conf spark.yarn.appMasterEnv.PYSPARK_PYTHON=./environment/bin/python \
    --conf spark.yarn.submit.waitAppCompletion=true \
    --conf spark.yarn.maxAppAttempts=1 \
    --archives "$archive#environment" \
    --files "$config" \
    "$here/apps/train.py" "$(basename "$config")" "$@" --workers "$workers"
