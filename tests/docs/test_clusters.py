"""The pages on clusters and on the first SparkNet, and their files, as far as they can be held here."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess

import pytest
import yaml

from places import REPOSITORY
from sparknet.cli import apps, main
from sparknet.config import load_config
from sparknet.spark.jobs import settings

CLUSTERS = REPOSITORY / "examples" / "clusters"
PAGE = (REPOSITORY / "docs" / "clusters.md").read_text(encoding="utf-8")
ORIGINAL = (REPOSITORY / "docs" / "original.md").read_text(encoding="utf-8")
FILES = sorted(path for path in CLUSTERS.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def blocks(page):
    return "\n".join(re.findall(r"^```\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)).splitlines()


def test_every_file_is_on_the_page_and_every_link_is_there():
    linked = set(re.findall(r"\]\(\.\./(examples/clusters/[^)]+)\)", PAGE))
    assert linked == {str(path.relative_to(REPOSITORY)) for path in FILES}


@pytest.mark.parametrize("page", [PAGE, ORIGINAL], ids=["clusters", "original"])
def test_every_command_parses(page):
    commands = [line for line in blocks(page) if line.startswith("sparknet ")]
    assert commands
    for command in commands:
        assert main._parser().parse_args(shlex.split(command)[1:]).module


def app_commands(text):
    for line in text.splitlines():
        if found := re.search(r"apps/(\w+)\.py (.*)", line.partition("#     ")[2] or line):
            yield found[1], shlex.split(found[2])


@pytest.mark.parametrize(
    "text",
    ["\n".join(blocks(ORIGINAL)), *(path.read_text() for path in sorted((REPOSITORY / "configs").glob("*.toml")))],
)
def test_every_program_takes_what_it_is_given(text):
    for name, arguments in app_commands(text):
        if name == "train":
            assert main._parser().parse_args(["train", *arguments]).config
        elif name == "featurizer_app":
            assert apps._featurizer_parser("featurizer_app.py").parse_args(arguments).workers
        else:
            spec = importlib.util.spec_from_file_location(name, REPOSITORY / "apps" / f"{name}.py")
            program = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(program)
            assert apps._parser(program.APP).parse_args(arguments).workers


def test_the_pages_commands_name_each_program():
    assert {name for name, _ in app_commands("\n".join(blocks(ORIGINAL)))} == {
        path.stem for path in (REPOSITORY / "apps").glob("*.py")
    }


def test_every_setting_that_is_refused_is_on_the_page():
    for key in settings._MUST_NOT:
        assert f"`{key}`" in PAGE


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sh"], ids=lambda path: path.name)
def test_scripts_are_whole_and_can_be_run(path):
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
    assert path.stat().st_mode & 0o111
    text = path.read_text()
    assert "set -eu" in text
    # What a script submits is there.
    for name in re.findall(r"apps/(\w+)\.py", text):
        assert (REPOSITORY / "apps" / f"{name}.py").exists()


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sh"], ids=lambda path: path.name)
def test_what_scripts_submit_is_what_the_command_takes(path, tmp_path):
    """Run with programs of the same names that only tell how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("spark-submit", "sparknet", "sudo", "python"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        (programs / name).chmod(0o755)
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    for name in ("sparknet", "python"):
        (environment / name).write_text("#!/bin/sh\necho /opt/spark\n")
        (environment / name).chmod(0o755)
    first = {"standalone.sh": ["spark://h:7077"], "submit.sh": ["https://k:6443", "4"]}.get(path.name, ["4"])
    done = subprocess.run(
        ["sh", str(path), *first, "digits.toml", "--set", "run.rounds=2"],
        cwd=tmp_path,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "HADOOP_CONF_DIR": "/etc/hadoop/conf",
            "IMAGE": "registry/sparknet:0.1",
            "ENVIRONMENT": str(environment.parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    if path.name == "bootstrap.sh":
        assert "python3.11" in words
        return
    words = words[words.index(str(programs / "spark-submit")) + 1 :]
    (app,) = [number for number, word in enumerate(words) if word.endswith("apps/train.py")]
    options, typed = words[:app], words[app + 1 :]
    parsed = main._parser().parse_args(["train", *typed])
    assert parsed.config.name == "digits.toml"
    assert parsed.set == ["run.rounds=2"]
    assert parsed.workers in (4, None)
    assert options[0] == "--master"
    # All of spark-submit's options here take a value.
    assert all(option.startswith("--") for option in options[::2]), options
    assert not any(value.startswith("--") for value in options[1::2]), options
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert option != "--conf" or re.fullmatch(r"spark\.[\w.]+=\S+", value), value


def test_the_databricks_files_are_whole():
    job = json.loads((CLUSTERS / "databricks" / "job.json").read_text())
    (task,), (cluster,) = job["tasks"], job["job_clusters"]
    assert task["job_cluster_key"] == cluster["job_cluster_key"]
    assert task["notebook_task"]["notebook_path"].endswith("examples/clusters/databricks/notebook")
    text = (CLUSTERS / "databricks" / "notebook.py").read_text()
    tree = ast.parse(text)
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and line.module.startswith("sparknet"):
            exec(compile(ast.Module([line], []), "notebook.py", "exec"), {})
    names = {}
    wanted = ("SHARED", "SETTINGS")
    for line in tree.body:
        if (isinstance(line, ast.Assign) and line.targets[0].id in wanted) or isinstance(line, ast.ImportFrom):
            exec(compile(ast.Module([line], []), "notebook.py", "exec"), names)
    config = load_config(REPOSITORY / "configs" / "digits.toml", names["SETTINGS"])
    assert config.run.workers == cluster["new_cluster"]["num_workers"]
    assert config.data.store.startswith(str(names["SHARED"]))


def test_the_kubernetes_files_fit_together():
    runs = {one["kind"]: one for one in yaml.safe_load_all((CLUSTERS / "kubernetes" / "runs.yaml").read_text())}
    submit = (CLUSTERS / "kubernetes" / "submit.sh").read_text()
    assert f"claimName={runs['PersistentVolumeClaim']['metadata']['name']} " in submit
    assert f"serviceAccountName={runs['ServiceAccount']['metadata']['name']} " in submit
    dockerfile = (CLUSTERS / "kubernetes" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY ([\w .]+) /opt/sparknet", dockerfile, flags=re.MULTILINE)
    for name in " ".join(copied).split():
        assert (REPOSITORY / name).exists()
    assert {"apps", "configs", "src"} <= set(" ".join(copied).split())
