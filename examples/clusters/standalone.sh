#!/bin/sh
# A run on a standalone Spark cluster whose machines have no more than Python and Java.
#
#     examples/clusters/standalone.sh spark://HOST:7077 configs/digits.toml --workers 4 --run-dir /shared/runs/digits
#
# The run directory must be one directory for the driver and all workers. Run it in an activated environment with
# sparknet[pack] in it; the environment is packed once, into ARCHIVE.
set -eu
master=$1
shift
here=$(cd "$(dirname "$0")/../.." && pwd)
archive=${ARCHIVE:-sparknet-env.tar.gz}
python=$(command -v python) || {
    echo "$0: there is no python; activate the environment first" >&2
    exit 1
}

[ -e "$archive" ] || sparknet pack "$archive"

# The driver runs here, with this Python; workers find theirs where Spark unpacks the archive.
export PYSPARK_DRIVER_PYTHON="$python" PYSPARK_PYTHON=./environment/bin/python
exec spark-submit \
    --master "$master" \
    --archives "$archive#environment" \
    "$here/apps/train.py" "$@"
