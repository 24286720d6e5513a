#!/bin/sh
# A run on an EMR cluster, from its primary node (ssh), with the Spark of the environment and EMR's YARN: EMR 7's own
# Spark is 3.5, and 4.0 is needed.
#
#     examples/clusters/emr/run.sh 4 configs/digits.toml --run-dir /shared/runs/digits
#
# The cluster: aws emr create-cluster --release-label emr-7.9.0 --applications Name=Hadoop ...
#     --bootstrap-actions Path=s3://BUCKET/bootstrap.sh,Args=[fs-0123.efs.REGION.amazonaws.com]
# The repository is expected where this file is; the environment is made once, on the shared directory.
set -eu
here=$(cd "$(dirname "$0")/../../.." && pwd)
environment=${ENVIRONMENT:-/shared/sparknet-env}

if [ ! -x "$environment/bin/sparknet" ]; then
    /usr/bin/python3.11 -m venv "$environment"
    "$environment/bin/pip" install torch --index-url https://download.pytorch.org/whl/cpu
    "$environment/bin/pip" install "$here[aws]"
fi

# The environment lies on the shared directory, so nothing is packed; Spark's jars travel from the environment.
export PATH="$environment/bin:$PATH" HADOOP_CONF_DIR=/etc/hadoop/conf
SPARK_HOME=$("$environment/bin/python" -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent)')
export SPARK_HOME PYSPARK_PYTHON="$environment/bin/python"
unset SPARK_CONF_DIR # EMR's is for its own version
workers=$1
shift
exec spark-submit \
    --master yarn \
    --deploy-mode client \
    --num-executors "$workers" \
    --executor-cores 1 \
    --executor-memory 1g \
    --conf spark.executor.memoryOverhead="${WORKER_MEMORY:-4g}" \
    "$here/apps/train.py" "$@" --workers "$workers"
