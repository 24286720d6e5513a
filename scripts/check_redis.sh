#!/usr/bin/env bash
# Looks for redis-server, which tests of GPU leases start, and installs it through apt where it may. Never fails: without
# it those tests are skipped, and say so.
set -uo pipefail

if command -v redis-server >/dev/null; then
    exit 0
fi

if ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "redis-server is missing: installing it with apt-get"
    # The lists may be there already, and a mirror that does not answer must not cost the tests.
    apt-get install -y -qq --no-install-recommends redis-server ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server; }
fi

if ! command -v redis-server >/dev/null; then
    echo "redis-server is not installed: tests of leases from Redis are skipped" >&2
fi
exit 0
