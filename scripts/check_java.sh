#!/usr/bin/env bash
# Sees to it that Spark finds Java 17 or newer: looks, installs through apt where it may, else says what to do.
set -euo pipefail

readonly LEAST=17

# Prints the major version of the Java that Spark would take: JAVA_HOME wins over PATH. Prints 0 if there is none.
java_version() {
    local java="java"
    if [[ -n "${JAVA_HOME:-}" ]]; then
        java="$JAVA_HOME/bin/java"
    fi
    if ! command -v "$java" >/dev/null; then
        echo 0
        return
    fi
    # `openjdk version "17.0.15" 2025-04-15`; before Java 9 it was "1.8.0_402"
    "$java" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1
}

found="$(java_version)"
if ((${found:-0} >= LEAST)); then
    exit 0
fi

if [[ -n "${JAVA_HOME:-}" ]]; then
    echo "JAVA_HOME is $JAVA_HOME, where Java is ${found:-unknown} (0: none); Spark needs $LEAST or newer:" >&2
    echo "set JAVA_HOME to such a Java, or unset it to use the one on PATH." >&2
    exit 1
fi

if ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "Java $LEAST or newer is missing: installing it with apt-get"
    apt-get update -qq
    for package in openjdk-17-jre-headless openjdk-21-jre-headless; do
        if apt-get install -y -qq --no-install-recommends "$package"; then
            break
        fi
    done
    found="$(java_version)"
    if ((${found:-0} >= LEAST)); then
        exit 0
    fi
fi

echo "Java on PATH is version ${found:-unknown} (0: none); Spark needs $LEAST or newer. Install it, for example:" >&2
echo "  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y openjdk-17-jre-headless" >&2
echo "  Fedora, RHEL:    sudo dnf install -y java-17-openjdk-headless" >&2
echo "  macOS:           brew install openjdk@17, then set JAVA_HOME to what 'brew --prefix openjdk@17' prints" >&2
exit 1
