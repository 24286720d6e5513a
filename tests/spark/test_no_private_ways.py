"""What Spark Connect does not have is not on the way of a run, a fit or a prediction."""

import re

from places import REPOSITORY

PRIVATE = re.compile(r"\b_jsc\b|\b_jvm\b|\b_jdf\b|\b_jconf\b|\.rdd\b|[sS]parkContext\._")
MAY = {
    "spark/jobs/session.py": "opens classic sessions, and asks what their submitter said",
    "spark/preparing/convert.py": "`sparknet convert` alone, which asks a classic session for its partitions",
}


def test_no_private_ways():
    source = REPOSITORY / "src" / "sparknet"
    found = {
        str(path.relative_to(source)): [
            line.strip() for line in path.read_text().splitlines() if PRIVATE.search(line)
        ]
        for path in sorted(source.rglob("*.py"))
    }
    assert {name for name, lines in found.items() if lines} == set(MAY), {
        name: lines for name, lines in found.items() if lines and name not in MAY
    }
