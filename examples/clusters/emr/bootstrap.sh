#!/bin/sh
# EMR's bootstrap action, on every node: the Python that the packed environment links to, and a shared directory.
# Amazon Linux 2023 (EMR 7 and newer) has 3.11 beside its own. The first argument is an EFS file system's DNS name.
set -eu
sudo dnf install -y python3.11 nfs-utils
sudo mkdir -p /shared
sudo mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,retrans=2 "$1:/" /shared
sudo chmod 1777 /shared
