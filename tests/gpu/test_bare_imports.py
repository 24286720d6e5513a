"""What a machine with a GPU needs beside torch: no Java, no Spark, and nothing that its image may lack."""

import subprocess
import sys

ABSENT = [
    "pyspark",
    "py4j",
    "pandas",
    "cv2",
    "h5py",
    "lmdb",
    "filelock",
    "torchmetrics",
    "redis",
    "sklearn",
    "rich",
    "PIL",
    "boto3",
]
PROGRAM = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Absent())
import bare_run, gpu_nets
"""


def test_a_run_without_spark_imports_nothing_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
