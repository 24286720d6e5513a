"""The command line as users meet it: `test`, `doctor`, the shipped configurations, and every kind of bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from cli_process import CONFIGS, SPARKNET, Host, checks_of, result_of, sparknet, table_of, trap_java
from formats import cifar_directory, idx, random_rows, write_cifar, write_mnist

DIGITS = str(CONFIGS / "digits.toml")

spark = pytest.mark.spark


@pytest.fixture(scope="module")
def java_trap(tmp_path_factory):
    """A JAVA_HOME whose Java tells its version and, when started for anything else, leaves a trace."""
    return trap_java(tmp_path_factory.mktemp("java"))


@pytest.fixture
def cold(cold_host, java_trap):
    """Runs commands that must fail before Spark starts."""
    yield cold_host.run
    assert not (java_trap / "started").exists(), "Spark was started"


@pytest.fixture(scope="module")
def cold_host(tmp_path_factory, java_trap):
    host = Host(tmp_path_factory.mktemp("cold"), with_spark=False, JAVA_HOME=str(java_trap))
    yield host
    host.close()


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A directory from which the workers of `warm` import modules."""
    return tmp_path_factory.mktemp("nets")


@pytest.fixture(scope="module")
def warm(tmp_path_factory, nets):
    """Runs commands with a session that is there already."""
    path = os.pathsep.join(filter(None, [str(nets), os.environ.get("PYTHONPATH")]))
    host = Host(tmp_path_factory.mktemp("warm"), with_spark=True, PYTHONPATH=path)
    yield host
    host.close()


@pytest.fixture(scope="module")
def digits_run(warm, tmp_path_factory):
    """A finished run."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    done = warm.run("train", DIGITS, "--run-dir", run_dir, "--set", "run.rounds=10", "--set", "run.eval_every=5")
    assert done.code == 0, done.err
    return run_dir


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cifar")
    cifar_directory(directory, rows=60, batches=2, test_rows=37)
    return directory


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mnist")
    write_mnist(directory, "train", *random_rows(100, (1, 28, 28), seed=3))
    write_mnist(directory, "t10k", *random_rows(31, (1, 28, 28), seed=4), zipped=True)
    return directory


@pytest.fixture(scope="module")
def cifar_run(warm, cifar, tmp_path_factory):
    return short_run(warm, "cifar10_quick", cifar, tmp_path_factory.mktemp("runs") / "cifar")


@pytest.fixture(scope="module")
def mnist_run(warm, mnist, tmp_path_factory):
    return short_run(warm, "mnist_lenet", mnist, tmp_path_factory.mktemp("runs") / "mnist")


def short_run(warm, name, data, run_dir):
    """Two rounds of a shipped configuration on other data of the same format."""
    sets = [
        f"data.path={data}",
        f"data.validation_path={data}",
        "run.epochs=",
        "run.rounds=2",
        "sync.local_steps=2",
    ]
    done = warm.run(
        "train",
        CONFIGS / f"{name}.toml",
        "--workers",
        2,
        "--run-dir",
        run_dir,
        *(word for setting in [*sets, "solver.batch_size=16", "sync.local_steps=2"] for word in ("--set", setting)),
    )
    assert done.code == 0, done.err
    return run_dir


def expected_table(result):
    shares = {"accuracy": "accuracy", "top-5": "top5"}
    table = {shown: f"{100 * result[key]:.2f} %" for shown, key in shares.items() if key in result}
    return {**table, "loss": f"{result['loss']:.4f}"}


# sparknet test ----------------------------------------------------------------------------------------------


@spark
@pytest.mark.parametrize("which", ["digits_run", "cifar_run", "mnist_run"])
def test_a_model_measures_as_in_its_run(warm, which, request):
    run_dir = request.getfixturevalue(which)
    result, measured = result_of(run_dir), warm.measure(run_dir)
    keys = {"accuracy", "top5", "loss"} & result.keys()
    assert keys >= {"accuracy", "loss"}
    assert {key: measured[key] for key in keys} == {key: result[key] for key in keys}
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert measured["rows"] == next(e["validation_rows"] for e in events if e["event"] == "run_started")


@spark
def test_the_command_prints_what_the_run_said(digits_run):
    done = sparknet("test", digits_run, cwd="/")
    assert (done.code, done.err) == (0, "")
    table = table_of(done)
    assert table["rows"] == "359 held out"
    assert table | expected_table(result_of(digits_run)) == table


@spark
def test_other_numbers_of_workers_measure_the_same(warm, digits_run):
    done = warm.run("test", digits_run, "--workers", 5)
    table = table_of(done)
    assert table | expected_table(result_of(digits_run)) == table
    assert (digits_run / "config.toml").read_text().count("workers = 2") == 1, "the run's settings stay"


@spark
def test_a_source_is_measured_whole(warm, cifar, cifar_run):
    expected = expected_table(result_of(cifar_run))
    for path in (cifar, cifar / "test_batch.bin"):  # a standard directory gives its test files
        table = table_of(warm.run("test", cifar_run, "--data", path))
        assert table["rows"] == f"37 from {path}"
        assert table | expected == table
    files = f"{cifar}/data_batch_*.bin"
    assert table_of(warm.run("test", cifar_run, "--data", files))["rows"] == f"120 from {files}"
    assert len(list((cifar_run / "store").iterdir())) == 1, "measuring prepares nothing"


@spark
def test_a_zipped_source_is_measured_whole(warm, mnist, mnist_run):
    table = table_of(warm.run("test", mnist_run, "--data", mnist / "t10k-images-idx3-ubyte.gz"))
    assert table["rows"].startswith("31 from")
    assert table | expected_table(result_of(mnist_run)) == table


@pytest.fixture(scope="module")
def three_classes(warm, tmp_path_factory):
    """A run on a table of 8x8 images of three classes; with the table's writer."""
    place = tmp_path_factory.mktemp("table")

    def write(name, *, rows, classes, side=8):
        values = np.random.default_rng(7).random((rows, side * side), np.float32)
        labels = pa.array(np.arange(rows) % classes)
        pq.write_table(pa.table({"image": list(values), "label": labels}), place / name)
        return place / name

    config = place / "config.toml"
    config.write_text(
        textwrap.dedent(
            f"""
            run = {{ workers = 2, rounds = 1 }}
            net = {{ name = "digits_cnn" }}
            solver = {{ batch_size = 4 }}
            sync = {{ local_steps = 1 }}

            [data]
            source = "parquet"
            path = "{write("train.parquet", rows=60, classes=3)}"
            validation_fraction = 0.3
            shape = [1, 8, 8]
            """
        )
    )
    done = warm.run("train", config, "--run-dir", place / "run")
    assert done.code == 0, done.err
    return place / "run", write


@spark
def test_data_that_do_not_fit_the_model(warm, three_classes, digits_run):
    run_dir, write = three_classes
    more = write("more.parquet", rows=30, classes=5)
    warm.run("test", run_dir, "--data", more).refused(
        1, "column label has 4 in .*more.parquet; it takes whole .* 0 to 2"
    )
    warm.run("test", run_dir, "--set", f"data.path={more}").refused(1, "5 classes and the model .* 3 apart")
    large = write("large.parquet", rows=30, classes=3, side=10)
    warm.run("test", run_dir, "--data", large).refused(1, r"100 values; shape \(1, 8, 8\) takes 64")
    none = write("none.parquet", rows=0, classes=3)
    warm.run("test", run_dir, "--data", none).refused(1, "no rows; testing needs at least one")
    fits = write("fits.parquet", rows=30, classes=2)
    assert table_of(warm.run("test", run_dir, "--data", fits))["rows"].startswith("30 ")
    bytes_of = ["--set", "data.source=parquet", "--set", f"data.path={fits}", "--set", "data.shape=[1, 8, 8]"]
    warm.run("test", digits_run, *bytes_of).refused(1, "column image is float32 .* trained on uint8")


# sparknet doctor --------------------------------------------------------------------------------------------


@spark
def test_doctor_finds_everything_in_order(tmp_path):
    done = sparknet("doctor", "--workers", 2, "--run-dir", tmp_path / "a" / "runs", cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done.out
    checks = checks_of(done)
    names = ["Python", "packages", "GPUs", "disk", "Java", "Spark", "workers", "ports", "routes", "store"]
    assert list(checks) == names
    assert {mark for mark, _ in checks.values()} <= {"ok", "warn"}, done.out
    assert "pre-import daemon active" in checks["workers"][1]
    assert "a wrong one is refused" in checks["ports"][1]
    assert re.search(r"16 MB in \d+ ms \([\d,]+ MB/s\)", checks["routes"][1])
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_doctor_names_the_remedy(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = sparknet("doctor", "--run-dir", file / "runs", cwd=tmp_path, JAVA_HOME=str(tmp_path / "nowhere"))
    assert (done.code, done.err) == (1, "")
    checks = checks_of(done)
    assert checks["Java"][0] == "FAIL"
    assert "install Java 17 or 21" in checks["Java"][1]
    assert checks["disk"][0] == "FAIL"
    assert "choose another --run-dir" in checks["disk"][1]
    assert checks["Spark"] == ("-", "not checked: needs Java")
    assert checks["routes"] == ("-", "not checked: needs ports")
    assert "Checks failed: 2, 5 could not be made" in done.out


@spark
def test_doctor_tells_what_spark_said(tmp_path, java_trap):
    done = sparknet("doctor", cwd=tmp_path, JAVA_HOME=str(java_trap))  # a Java that ends at once
    assert (done.code, done.err) == (1, "")
    assert checks_of(done)["Spark"][0] == "FAIL"
    log = re.search(r"What Spark said is in (\S+)\.", done.out)
    assert log
    assert Path(log[1]).exists()
    shutil.rmtree(Path(log[1]).parent)
    (java_trap / "started").unlink()


# Bad input that is found before Spark starts -----------------------------------------------------------------


def test_a_missing_file_in_a_process_of_its_own(tmp_path):
    done = sparknet("train", tmp_path / "none.toml", cwd=tmp_path)
    done.refused(2, "none.toml: no such file; give the path of a TOML configuration")
    assert not list(tmp_path.iterdir())


BAD_SETTINGS = {
    "nonsense": (["nonsense"], "form is section.key=value"),
    "unknown key": (["run.workerz=2"], "run.workerz is not a known key; did you mean workers"),
    "unknown section": (["rum.workers=2"], "rum is not a known key; did you mean run"),
    "wrong type": (["run.workers=two"], "run.workers is 'two'; it must be a whole number"),
    "bad value": (["sync.local_steps=0"], "sync.local_steps is 0; it must be at least 1: set sync.local_steps"),
    "bad choice": (["sync.strategy=sum"], "must be one of 'average', 'diloco', 'none'"),
    "rounds and epochs": (
        ["run.epochs=3"],
        r"run.rounds is 80, run.iterations is not given, run.epochs is 3.0; exactly one must be given",
    ),
    "neither": (["run.rounds="], "exactly one must be given: set run.rounds, run.iterations or run.epochs"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(cold, tmp_path, name):
    settings, message = BAD_SETTINGS[name]
    words = [word for setting in settings for word in ("--set", setting)]
    cold("train", DIGITS, "--run-dir", tmp_path / "run", *words).refused(2, message)
    assert not list(tmp_path.iterdir())


def test_bad_files(cold, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(Path(DIGITS).read_text().replace("rounds = 80", "rouds = 80"))
    cold("train", config).refused(2, "config.toml: run.rouds is not a known key; did you mean rounds")
    config.write_text("[run\n")
    cold("train", config).refused(2, "config.toml: not valid TOML: .*line 1.*correct that line")


def test_wrong_usage(cold):
    for arguments in (["train"], ["train", DIGITS, "--workers", "0"], ["fly"], []):
        done = cold(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith("sparknet")
        assert "Traceback" not in done.err


def test_an_unknown_net(cold, tmp_path):
    def refused(name, *words):
        cold("train", DIGITS, "--run-dir", tmp_path / "run", "--set", f"net.name={name}", cwd=tmp_path).refused(
            1, *words
        )

    refused("digits_cmn", "not in the zoo: did you mean digits_cnn")
    refused("nowhere_at_all:Net", "importing nowhere_at_all failed", "PYTHONPATH")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("solver.optimizer=Sgd", "solver.optimizer is 'Sgd'; it must be one of"),
        ("solver.arguments={ nestorov = true }", "solver.arguments.nestorov is True, and SGD takes no nestorov"),
        (
            "objective.loss=cros_entropy",
            "objective.loss is 'cros_entropy'; torch.nn.functional has no such function",
        ),
        ("objective.loss='torch.nn:cros'", "objective.loss"),
        ("objective.measures=['R2score']", "objective.measures has 'R2score', which torchmetrics has not"),
        ("cluster.device='cuda'", "cluster.device is 'cuda' and"),
    ],
)
def test_what_cannot_be_made_is_told_before_spark_starts(cold, tmp_path, setting, words):
    done = cold("train", DIGITS, "--run-dir", tmp_path / "run", "--set", setting, cwd=tmp_path)
    done.refused(2, words)
    assert not list(tmp_path.iterdir())


def bad_data(directory):
    """Damaged or missing sources: settings and what is said of each."""
    images, labels = random_rows(20, (3, 32, 32))
    cut = write_cifar(directory / "cut.bin", images, labels)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty = directory / "empty.bin"
    empty.touch()
    wrong = write_mnist(directory / "mnist", "train", *random_rows(20, (1, 28, 28)))
    wrong.write_bytes(idx(np.zeros((20, 28, 28), np.uint8), magic=0x999))
    none = write_mnist(directory / "none", "train", *random_rows(0, (1, 28, 28)))
    return {
        ("cifar10", directory / "missing"): "missing: no such file, directory or glob match; correct data.path",
        ("cifar10", cut): "cut.bin: 61360 bytes; .*records of 3073 bytes: fetch the binary version again",
        ("cifar10", empty): "empty.bin: 0 bytes; .*one or more records",
        ("cifar10", directory): r"the directory has no CIFAR-10 training batches.*set data.path",
        ("cifar10", directory / "mnist"): "the directory has no CIFAR-10 train batches",
        ("mnist", wrong): "magic number 0x999; IDX images start with 0x803",
        ("mnist", none): "no rows; an IDX file must hold at least one: fetch it again",
        ("parquet", directory / "missing.parquet"): "missing.parquet: no such file or directory; correct data.path",
    }


@pytest.mark.parametrize("number", range(8))
def test_missing_and_damaged_data(cold, tmp_path, number):
    data = tmp_path / "data"
    data.mkdir()
    (source, path), message = list(bad_data(data).items())[number]
    message = message.replace("training batches", "train batches")
    words = ["--set", f"data.source={source}", "--set", f"data.path={path}"]
    cold("train", DIGITS, "--run-dir", tmp_path / "run", *words).refused(1, re.escape(str(path)), message)
    assert not (tmp_path / "run").exists()


def test_no_java(tmp_path):
    done = sparknet("train", DIGITS, "--run-dir", tmp_path / "run", cwd=tmp_path, JAVA_HOME=str(tmp_path))
    done.refused(2, "JAVA_HOME is .* which holds no bin/java; install Java 17 or 21")
    assert not list(tmp_path.iterdir())


def test_run_directories_that_cannot_be_used(cold, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    cold("train", DIGITS, "--run-dir", file / "run").refused(1, "cannot be made: Not a directory; choose another")
    cold("train", DIGITS, "--run-dir", file).refused(1, "cannot be made: File exists; choose another --run-dir")
    assert file.read_text() == "mine"
    for command in ("resume", "test"):
        cold(command, tmp_path).refused(1, "holds no run", "give a run's directory")
        cold(command, tmp_path / "none").refused(1, "holds no run", "give a run's directory")
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def unfinished(tmp_path):
    """A run directory as it is before Spark has started."""
    run_dir = tmp_path / "unfinished"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(Path(DIGITS).read_text())
    return run_dir


def test_an_unfinished_run(cold, unfinished):
    before = sorted(unfinished.iterdir())
    cold("test", unfinished).refused(1, "holds no finished model", "finish the run with `sparknet resume`")
    assert sorted(unfinished.iterdir()) == before
    cold("train", DIGITS, "--run-dir", unfinished).refused(1, "holds a run already; go on with `sparknet resume")


def test_a_run_that_is_in_use(cold, unfinished):
    with FileLock(unfinished / ".lock"):
        cold("resume", unfinished).refused(1, "is in use by another run; wait for it")


def test_resuming_with_bad_settings_changes_nothing(cold, unfinished):
    before = (unfinished / "config.toml").read_text()
    cold("resume", unfinished, "--set", "data.source=cifar10", "--set", "data.path=/none").refused(
        1, "/none: no such"
    )
    cold("resume", unfinished, "--set", "run.workers=0").refused(2, "run.workers is 0; it must be at least 1")
    assert (unfinished / "config.toml").read_text() == before


# Bad input that only shows in a run -------------------------------------------------------------------------


@spark
def test_test_data_that_are_missing(warm, digits_run, cifar_run, tmp_path):
    missing = tmp_path / "none"
    warm.run("test", cifar_run, "--data", missing).refused(1, f"{missing}: no such file")
    warm.run("test", digits_run, "--data", missing).refused(1, "digits comes without files: leave --data out")


@spark
def test_a_finished_run_stays_as_it_is(warm, digits_run):
    def contents():
        return {path: path.stat().st_mtime_ns for path in digits_run.rglob("*") if path.name != ".lock"}

    before = contents()
    warm.run("train", DIGITS, "--run-dir", digits_run).refused(1, "holds a run already; .*another --run-dir")
    again = warm.run("resume", digits_run)
    assert again.code == 0
    assert "is finished; to train it further, start a new run" in again.out
    assert contents() == before


@spark
def test_a_label_out_of_range(warm, tmp_path):
    images, labels = random_rows(40, (3, 32, 32))
    labels[17] = 12
    path = write_cifar(tmp_path / "batch.bin", images, labels)
    words = ["--set", "data.source=cifar10", "--set", f"data.path={path}", "--set", "net.name=cifar10_quick"]
    done = warm.run("train", DIGITS, "--run-dir", tmp_path / "run", *words)
    done.refused(1, "batch.bin: row 17 has label 12; labels must be 0 to 9 for 10 classes: correct the labels")
    assert not list((tmp_path / "run" / "store").iterdir())


@spark
def test_fewer_rows_than_workers(warm, tmp_path):
    path = write_cifar(tmp_path / "batch.bin", *random_rows(8, (3, 32, 32)))
    sets = ["data.source=cifar10", f"data.path={path}", "data.validation_fraction=0.5", "net.name=cifar10_quick"]
    words = [word for setting in sets for word in ("--set", setting)]
    done = warm.run("train", DIGITS, "--run-dir", tmp_path / "run", "--workers", 5, *words)
    done.refused(1, "4 training rows for 5 workers; each needs at least one: set --workers to a smaller number")


@spark
def test_a_loss_that_is_not_finite(warm, tmp_path):
    done = warm.run("train", DIGITS, "--run-dir", tmp_path / "run", "--set", "solver.learning_rate=1e30")
    done.refused(
        1,
        r"worker [01] on \S+ failed while taking the local steps of round \d+: ",
        "is nan; it must be finite: lower solver.learning_rate",
    )
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "model").exists()


@spark
def test_a_net_that_raises(warm, nets, tmp_path):
    (nets / "broken_net.py").write_text(
        textwrap.dedent(
            """
            from torch import nn


            class Broken(nn.Linear):
                def __init__(self, classes: int) -> None:
                    super().__init__(64, classes)

                def forward(self, images):
                    # The first rows are looked at in evaluation mode.
                    if self.training:
                        raise RuntimeError("no way forward")
                    return super().forward(images.flatten(1))
            """
        )
    )
    done = warm.run("train", DIGITS, "--run-dir", tmp_path / "run", "--set", "net.name=broken_net:Broken", cwd=nets)
    done.refused(
        1, r"worker [01] on \S+ failed while taking the local steps of round 1: RuntimeError: no way forward"
    )


@spark
def test_a_net_that_does_not_take_the_rows(warm, nets, tmp_path):
    (nets / "flat_net.py").write_text(
        "from torch import nn\n\n\ndef build(classes):\n    return nn.Linear(64, classes)\n"
    )
    done = warm.run("train", DIGITS, "--run-dir", tmp_path / "run", "--set", "net.name=flat_net:build", cwd=nets)
    done.refused(
        1, r"net flat_net:build: the first 2 rows \(image \(2, 1, 8, 8\), label \(2,\)\) do not go through it"
    )
    assert "worker_joined" not in (tmp_path / "run" / "events.jsonl").read_text()


@spark
def test_a_net_that_raises_while_tested(warm, nets, digits_run, tmp_path):
    (nets / "raising_net.py").write_text(
        textwrap.dedent(
            """
            from sparknet.caffe.zoo import digits_cnn


            def build(input_shape, classes):
                net = digits_cnn(input_shape=input_shape, classes=classes)
                net.register_forward_hook(lambda *call: 1 / 0)
                return net
            """
        )
    )
    run_dir = shutil.copytree(digits_run, tmp_path / "run")
    model = run_dir / "model" / "model.json"
    model.write_text(model.read_text().replace('"digits_cnn"', '"raising_net:build"'))
    done = warm.run("test", run_dir, cwd=nets)
    done.refused(1, r"worker [01] on \S+ failed while testing the model: ZeroDivisionError: division by zero")


@spark
def test_a_damaged_model(warm, digits_run, tmp_path):
    for name in ("weights.safetensors", "preprocess.safetensors", "model.json"):
        run_dir = shutil.copytree(digits_run, tmp_path / name)
        (run_dir / "model" / name).write_bytes(b"cut short")
        warm.run("test", run_dir).refused(1, re.escape(str(run_dir / "model")), "damaged")


@spark
def test_an_interrupt_ends_a_command_at_once(tmp_path):
    command = [*SPARKNET, "doctor", "--run-dir", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    assert any("Spark" in line for line in lines), "it got as far as the workers' first job"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    rest, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "sparknet: interrupted\n"), rest
    assert time.monotonic() - began < 20


@contextmanager
def small_disk(place, *, megabytes):
    """A file system of that size; skips where none can be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = done.stderr.strip()
    except FileNotFoundError:
        done, reason = None, "there is no mount command"
    if done is None or done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {reason}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@spark
def test_a_full_disk_while_checkpointing(warm, tmp_path):
    with small_disk(tmp_path / "disk", megabytes=3) as disk:
        run_dir = disk / "run"
        sets = [f"data.store={tmp_path}/store", "net.arguments.width=96", "run.rounds=2", "sync.local_steps=1"]
        words = [word for setting in sets for word in ("--set", setting)]
        done = warm.run("train", DIGITS, "--run-dir", run_dir, *words)
        done.refused(1, "the checkpoint of round 2 cannot be written to .*No space left", "make room there")
        assert not list((run_dir / "checkpoints").iterdir())
        left = {path.name for path in run_dir.iterdir() if not path.name.startswith("training_log")}
        assert left <= {
            ".lock",
            "config.toml",
            "events.jsonl",
            "checkpoints",
            "preprocess.safetensors",
            "spark.log",
        }
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        resumed = warm.run("resume", run_dir)
        assert resumed.code == 0, resumed.err
        assert result_of(run_dir)["rounds"] == 2
