"""Runs one command line after the other in one process, as `sparknet` would, to pay for imports and Spark once.

Program: python cli_host.py OUT ERR [LOG]. With LOG it opens a Spark session first, which the commands adopt, and
which writes to LOG. Standard output and error, also of what it starts, go to the files OUT and ERR.
Requests are JSON lines on standard input; so are the answers on what was standard output.
"""

import json
import os
import sys
import traceback
from pathlib import Path


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for number, name in enumerate(sys.argv[1:3], start=1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
    session = open_session(Path(sys.argv[3])) if len(sys.argv) > 3 else None
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["cwd"])
        try:
            answer = command(request["arguments"]) if "arguments" in request else measure(Path(request["measure"]))
        except BaseException:  # what Python would do with it at the top
            traceback.print_exc()
            answer = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        print(json.dumps({"answer": answer}), file=answers)
    if session is not None:
        session.stop()


def open_session(log):
    from sparknet.config import Cluster
    from sparknet.spark.jobs import session

    return session.open_session(Cluster(task_failures=3), workers=2, name="tests", log_path=log)


def command(arguments):
    from sparknet.cli.main import main

    try:
        return main(arguments)
    except SystemExit as end:  # argparse
        return end.code


def measure(run_dir):
    from pyspark.sql import SparkSession

    from sparknet.config import encode, load_config
    from sparknet.spark.measure import measure_validation
    from sparknet.training.run_files.saved_model import load_model

    config = load_config(run_dir / "config.toml")
    model = load_model(run_dir / "model")
    return encode(
        measure_validation(SparkSession.getActiveSession(), model, config, store=run_dir / "store", note=print)
    )


if __name__ == "__main__":
    main()
