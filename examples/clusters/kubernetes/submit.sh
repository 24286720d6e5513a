#!/bin/sh
# A run on Kubernetes: one pod for the driver, one for each worker.
#
#     IMAGE=REGISTRY/sparknet:0.1 examples/clusters/kubernetes/submit.sh https://KUBERNETES:6443 4 digits.toml
#
# The image is that of the Dockerfile beside this file, and runs.yaml must have been applied. The configuration is one
# of the image's configs/; data and run directory are below /runs, the volume that all pods share.
set -eu
: "${IMAGE:?it is not set; it is the image that the Dockerfile beside this file makes}"
kubernetes=$1 workers=$2 config=$3
shift 3
name=${NAME:-$(basename "$config" .toml)}

volume() {
    printf -- '--conf spark.kubernetes.%s.volumes.persistentVolumeClaim.runs.mount.path=/runs ' "$1"
    printf -- '--conf spark.kubernetes.%s.volumes.persistentVolumeClaim.runs.options.claimName=sparknet-runs ' "$1"
}

# spark.task.cpus stays 1: one worker a core; the rest of an executor's memory is the worker's own process.
# shellcheck disable=SC2046  # words are meant
exec spark-submit \
    --master "k8s://$kubernetes" \
    --deploy-mode cluster \
    --name "$name" \
    --conf spark.kubernetes.namespace="${NAMESPACE:-default}" \
    --conf spark.kubernetes.authenticate.driver.serviceAccountName=sparknet \
    --conf spark.kubernetes.container.image="$IMAGE" \
    --conf spark.executor.instances="$workers" \
    --conf spark.executor.cores=1 \
    --conf spark.executor.memory=1g \
    --conf spark.executor.memoryOverhead="${WORKER_MEMORY:-4g}" \
    --conf spark.driver.memory=1g \
    --conf spark.driver.memoryOverhead=4g \
    $(volume driver) $(volume executor) \
    local:///opt/sparknet/apps/train.py "/opt/sparknet/configs/$config" \
    --workers "$workers" --run-dir "/runs/$name" "$@"
