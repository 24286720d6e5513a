"""The configuration: every rule, overrides, and files that read back as they were written."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from places import REPOSITORY
from sparknet.config import (
    Cluster,
    Data,
    Net,
    Run,
    RunConfig,
    Solver,
    Sync,
    decode,
    encode,
    load_config,
    override,
    write_config,
)
from sparknet.config.files import sections_from
from sparknet.errors import ConfigError, UsageError

SHIPPED = sorted((REPOSITORY / "configs").glob("*.toml"))

MINIMAL = """
[run]
rounds = 5
[data]
source = "digits"
validation_fraction = 0.2
[net]
name = "digits_cnn"
"""


def minimal() -> RunConfig:
    return RunConfig(
        run=Run(rounds=5), data=Data(source="digits", validation_fraction=0.2), net=Net(name="digits_cnn")
    )


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_minimal_file_takes_the_defaults(tmp_path):
    config = load_config(file_with(tmp_path, MINIMAL))
    assert config == minimal()
    assert (config.sync, config.solver, config.cluster) == (Sync(), Solver(), Cluster())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "copy.toml"
    write_config(config, copy)
    assert load_config(copy) == config
    assert config.data.validation_fraction or config.data.validation_path == config.data.path


def test_the_three_promised_files_are_shipped():
    assert {"cifar10_quick", "digits", "mnist_lenet"} <= {path.stem for path in SHIPPED}


# Rules: setting on top of a minimal configuration, and what the message must say ---------------------------

RULES = [
    ("run.seed=-1", r"run\.seed is -1; it must be at least 0: set run\.seed"),
    ("run.workers=0", r"run\.workers is 0; it must be at least 1"),
    ("run.min_workers=0", r"run\.min_workers is 0; it must be at least 1"),
    ("run.min_workers=3", r"run\.min_workers is 3; it must not exceed run\.workers, which is 2"),
    ("run.epochs=1.0", r"run\.iterations is not given, run\.epochs is 1\.0; exactly one must be given"),
    ("run.iterations=1", r"run\.rounds is 5, run\.iterations is 1, run\.epochs is not given; exactly one"),
    ("run.eval_iterations=0", r"run\.eval_iterations is 0; it must be at least 1"),
    ("run.checkpoint_iterations=-1", r"run\.checkpoint_iterations is -1; it must be at least 1"),
    ("run.rounds=", r"run\.rounds is not given, run\.iterations is not given, .*exactly one must be given"),
    ("run.rounds=0", r"run\.rounds is 0; it must be at least 1"),
    (
        "data.validation='none'",
        r"fraction is 0\.2, data\.validation is 'none'; exactly one must be given",
    ),
    ("data.tests.more={ batches = 0 }", r"data\.tests\.more\.batches is 0; it must be at least 1"),
    (
        "data.tests.more={ path = 'x', beside = { goal = 'y' } }",
        r"data\.tests\.more\.beside is \['goal'\]; .*a path of each source \(none\)",
    ),
    ("run.early_stop.patience=0", r"run\.early_stop\.patience is 0; it must be at least 1"),
    ("run.early_stop.min_delta=-0.1", r"run\.early_stop\.min_delta is -0\.1; it must be at least 0"),
    ("run.eval_every=-1", r"run\.eval_every is -1; it must be at least 0"),
    ("run.checkpoint_every=-1", r"run\.checkpoint_every is -1; it must be at least 0"),
    ("run.keep_checkpoints=1", r"run\.keep_checkpoints is 1; it must be at least 2"),
    ("run.name='a/b'", r"run\.name is 'a/b'; it must be letters, digits, dots, dashes and underscores"),
    ("run.name=''", r"run\.name is ''; it must be letters"),
    (
        "data.validation_path='x'",
        r"path is 'x', .* is 0\.2, data\.validation is not given; exactly one",
    ),
    ("data.validation_fraction=0.0", r"exactly one must be given: set one of them"),
    ("data.validation_fraction=1.0", r"data\.validation_fraction is 1\.0; it must be at least 0 and below 1"),
    ("data.validation_fraction=-0.1", r"data\.validation_fraction is -0\.1; it must be at least 0 and below 1"),
    ("data.shape=[1, 0, 8]", r"data\.shape is \[1, 0, 8\]; every size must be at least 1"),
    ("data.classes=1", r"data\.classes is 1; it must be at least 2"),
    ("data.shard_megabytes=0", r"data\.shard_megabytes is 0\.0; it must exceed 0"),
    ("data.scale=0", r"data\.scale is 0\.0; 0 would erase every input"),
    ("data.resize=[8]", r"data\.resize is \[8\]; it must be \[height, width\]"),
    ("data.crop=-1", r"data\.crop is -1; it must be at least 0"),
    ("data.threads=0", r"data\.threads is 0; it must be at least 1"),
    ("data.cache='copies'", r"data\.cache is 'copies'; a relative path is another .*: begin it with / or ~"),
    ("data.corrupt_share=1.5", r"data\.corrupt_share is 1\.5; it is a share: from 0 to 1"),
    ("data.std_values=[0.0]", r"data\.std_values is \[0\.0\]; inputs are divided by them: each must exceed 0"),
    ("net.name=''", r"net\.name is '', net\.prototxt is ''; exactly one must be given: a zoo entry"),
    ("net.prototxt='a.prototxt'", r"net\.name is 'digits_cnn', net\.prototxt is 'a\.prototxt'; exactly one"),
    ("run.eval_batches=0", r"run\.eval_batches is 0; it must be at least 1"),
    ("solver.snapshot='a.solverstate'", r"solver\.snapshot is 'a\.solverstate'; it belongs to a Caffe solver"),
    ("solver.batch_size=0", r"solver\.batch_size is 0; it must be at least 1"),
    ("solver.learning_rate=0", r"solver\.learning_rate is 0\.0; it must exceed 0"),
    ("solver.momentum=1.0", r"solver\.momentum is 1\.0; it must be at least 0 and below 1"),
    ("solver.weight_decay=-1.0", r"solver\.weight_decay is -1\.0; it must be at least 0"),
    ("solver.policy='step'", r"solver\.step_size is not given; policy step needs it, at least 1"),
    (
        "solver.step_size=8",
        r"solver\.step_size is 8; policy step needs it, at least 1, and no other takes it: --set",
    ),
    ("solver.gamma=0.0", r"solver\.gamma is 0\.0; it must exceed 0"),
    ("sync.local_steps=0", r"sync\.local_steps is 0; it must be at least 1: set sync\.local_steps"),
    ("sync.outer_momentum=0.5", r"sync\.outer_momentum is 0\.5; strategy average has no outer optimiser"),
    ("sync.outer_nesterov=false", r"sync\.outer_nesterov is false; strategy average has no outer optimiser"),
    ("cluster.grace_seconds=0", r"cluster\.grace_seconds is 0\.0; it must be more than 0 seconds"),
    ("cluster.heartbeat_timeout_seconds=0", r"cluster\.heartbeat_timeout_seconds is 0\.0"),
    ("cluster.start_seconds=-1", r"cluster\.start_seconds is -1\.0"),
    ("cluster.exchange_seconds=0", r"cluster\.exchange_seconds is 0\.0"),
    ("cluster.task_failures=0", r"cluster\.task_failures is 0; it must be at least 1"),
    ("cluster.threads_per_worker=0", r"cluster\.threads_per_worker is 0; it must be at least 1"),
    ("cluster.tls_key='key.pem'", r"TLS needs both: set the other one too"),
    ("objective.measures=['Accuracy', 'Accuracy']", r"two have the same name.*give it another `name`"),
    ("objective.measures=['loss']", r"measures is \['loss'\]; .*that of the loss, which is always measured"),
    ("net.weights_map={a = 'b'}", r"net\.weights_map is .*no file is given: set net\.weights"),
]


COLUMN_RULES = [
    ("kind = 'number', crop = 3", r"columns\.image\.crop is 3; kind number does not take it: leave it out"),
    ("kind = 'category', scale = 2.0", r"columns\.image\.scale is 2\.0; kind category does not take it"),
    ("kind = 'ids', mean = 'channel'", r"columns\.image\.mean is 'channel'; kind ids does not take it"),
    ("kind = 'array', resize = [4, 4]", r"columns\.image\.resize is \[4, 4\]; kind array does not take it"),
    ("kind = 'image', length = 4", r"columns\.image\.length is 4; kind image does not take it"),
    ("kind = 'image', classes = 4", r"columns\.image\.classes is 4; kind image does not take it"),
    ("kind = 'ids', dtype = 'uint8'", r"columns\.image\.dtype is 'uint8'; ids are int64: leave it out"),
    ("kind = 'ids', pad = 1.0", r"columns\.image\.pad is 1\.0; it goes with a length: set"),
    ("kind = 'ids', truncate = true", r"columns\.image\.truncate is true; it goes with a length: set"),
    ("kind = 'ids', length = 0", r"columns\.image\.length is 0; it must be at least 1"),
    ("kind = 'ids', length = 4, pad = 0.5", r"columns\.image\.pad is 0\.5; it becomes int64: give such a number"),
    ("dtype = 'uint8', length = 4, pad = -1.0", r"columns\.image\.pad is -1\.0; it becomes uint8: give such"),
    ("length = 4, shape = [5]", r"length is 4, .*shape is \[5\]; both say how long rows are: leave"),
    ("resize_mode = 'shorter_side'", r"resize_mode is 'shorter_side'; it says how images are resized: set"),
]


@pytest.mark.parametrize(("table", "message"), COLUMN_RULES)
def test_a_column_is_told_only_what_it_can_follow(tmp_path, table, message):
    with pytest.raises(ConfigError, match=message):
        load_config(file_with(tmp_path, MINIMAL), [f"data.columns.image={{ {table} }}"])


@pytest.mark.parametrize(
    ("setting", "key"), [("run.early_stop.patience=2", "early_stop"), ("run.keep=best", "keep")]
)
def test_what_judges_validations_needs_some(tmp_path, setting, key):
    with pytest.raises(ConfigError, match=rf"run\.eval_every is 0; run\.{key} needs validations on the way"):
        load_config(file_with(tmp_path, MINIMAL), [setting, "run.eval_every=0"])


@pytest.mark.parametrize("setting", ["run.early_stop.patience=2", "run.keep=best", "data.tests.more={}"])
def test_where_nothing_is_held_out_nothing_is_judged(tmp_path, setting):
    none = ["data.validation_fraction=0.0", "data.validation=none", setting]
    with pytest.raises(ConfigError, match="hold some out, or leave"):
        load_config(file_with(tmp_path, MINIMAL), none)


@pytest.mark.parametrize(("setting", "message"), RULES, ids=[rule[0] for rule in RULES])
def test_every_rule_says_value_rule_and_remedy(setting, message):
    with pytest.raises(ConfigError, match=message):
        override(minimal(), [setting])


@pytest.mark.parametrize("setting", ["sync.outer_learning_rate=0.0", "sync.outer_momentum=1.0"])
def test_the_outer_optimiser_has_its_own_bounds(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0].replace(".", r"\.")):
        override(minimal(), ["sync.strategy='diloco'", setting])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["run.epochs", "data.scale", "solver.learning_rate", "sync.outer_momentum", "cluster.grace_seconds"]
)
def test_numbers_must_be_finite(key, value):
    with pytest.raises(ConfigError, match=rf"{key} is {value}; it must be a finite number"):
        override(minimal(), [f"{key}={value}"])


def test_diloco_fills_its_presets_in():
    outer = override(minimal(), ["sync.strategy=diloco"]).sync.outer
    assert (outer.learning_rate, outer.momentum, outer.nesterov) == (0.7, 0.9, True)
    outer = override(minimal(), ["sync.strategy=diloco", "sync.outer_momentum=0.0"]).sync.outer
    assert (outer.learning_rate, outer.momentum, outer.nesterov) == (0.7, 0.0, True)
    assert minimal().sync.outer.learning_rate == 1.0


# Types and keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.roundz=3", r"run\.roundz is not a known key; did you mean rounds\?"),
        ("sinc.local_steps=3", r"sinc is not a known key; did you mean sync\?"),
        ("run.zzz=3", r"run\.zzz is not a known key; known keys: name, seed, workers"),
        ("run.workers=two", r"run\.workers is 'two'; it must be a whole number"),
        ("run.workers=2.5", r"run\.workers is 2\.5; it must be a whole number"),
        ("run.workers=true", r"run\.workers is True; it must be a whole number"),
        ("run.rounds=many", r"run\.rounds is 'many'; it must be a whole number"),
        ("solver.learning_rate=true", r"solver\.learning_rate is True; it must be a number"),
        ("net.channels_last=1", r"net\.channels_last is 1; it must be true or false"),
        ("run.name=3", r"run\.name is 3; it must be text in quotes"),
        ("sync.pace=brisk", r"sync\.pace is 'brisk'; it must be one of 'fixed', 'balanced'"),
        ("data.shape=8", r"data\.shape is 8; it must be a list"),
        ("data.shape=[1, 'a']", r"data\.shape\[1\] is 'a'; it must be a whole number"),
        ("net.arguments=3", r"net\.arguments is 3; it must be a table"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        override(minimal(), [setting])


@pytest.mark.parametrize("setting", ["rounds=3", "run.rounds", "run..rounds=3", "=3", ""])
def test_settings_of_another_form_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"--set {re.escape(repr(setting))}: the form is section\.key=value"):
        override(minimal(), [setting])


def test_a_setting_cannot_go_into_a_value():
    with pytest.raises(ConfigError, match="rounds is a value, not a section"):
        override(minimal(), ["run.rounds.more=3"])


def test_overrides_apply_in_order_and_an_empty_value_is_the_default():
    config = override(minimal(), ["run.workers=3", "run.workers=4", "solver.batch_size=9", "solver.batch_size="])
    assert config.run.workers == 4
    assert config.solver.batch_size == Solver().batch_size
    assert override(minimal(), ["run.rounds=", "run.epochs=2"]).run.epochs == 2.0  # a whole number is a number


def test_net_arguments_keep_their_types():
    arguments = override(
        minimal(),
        ["net.arguments.depth=18", "net.arguments.rate=0.5", "net.arguments.kind=wide", "net.arguments.b=true"],
    ).net.arguments
    assert arguments == {"depth": 18, "rate": 0.5, "kind": "wide", "b": True}
    assert isinstance(arguments["depth"], int)


# Files ---------------------------------------------------------------------------------------------------


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file; give the path of a TOML configuration"):
        load_config(tmp_path / "none.toml")


def test_a_syntax_error_names_file_and_line(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML: .*line 3.*; correct that line"):
        load_config(file_with(tmp_path, "[run]\nrounds = 3\nseed == 4\n"))


def test_a_file_that_is_no_text_says_so(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.toml: cannot be read: .*; give a readable UTF-8 TOML file"):
        load_config(tmp_path / "run.toml")


def test_a_directory_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        load_config(tmp_path)


def test_a_refused_value_names_file_and_key(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.toml: run\.rounds is 0; it must be at least 1: set run\.rounds"):
        load_config(file_with(tmp_path, MINIMAL.replace("rounds = 5", "rounds = 0")))


def test_a_missing_section_or_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match="net is missing; it has no default: set net"):
        load_config(file_with(tmp_path, MINIMAL.split("[net]")[0]))
    with pytest.raises(ConfigError, match=r"net\.name is '', net\.prototxt is ''; exactly one must be given"):
        load_config(file_with(tmp_path, MINIMAL.replace('name = "digits_cnn"', "")))


def test_a_section_must_be_a_table(tmp_path):
    with pytest.raises(ConfigError, match="sync is 3; it must be a table of keys"):
        load_config(file_with(tmp_path, "sync = 3\n" + MINIMAL))


def test_refused_configurations_are_the_users_to_correct():
    assert issubclass(ConfigError, UsageError)
    assert ConfigError.exit_code == 2


def test_writing_replaces_the_file_whole_or_not_at_all(tmp_path):
    path = file_with(tmp_path, "old = 1\n")
    write_config(minimal(), path)
    assert load_config(path) == minimal()
    assert list(tmp_path.iterdir()) == [path]
    odd = dataclasses.replace(minimal(), net=Net(name="n", arguments={"a": object()}))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="object"):
        write_config(odd, path)
    assert load_config(path) == minimal()
    assert list(tmp_path.iterdir()) == [path]


# Property: whatever is valid survives the codec and the file ---------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
finite = st.floats(1e-6, 1e6)
scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), words)


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    by_rounds = draw(st.booleans())
    workers = draw(st.integers(1, 64))
    run = Run(
        seed=draw(st.integers(0, 2**31)),
        workers=workers,
        min_workers=draw(st.integers(1, workers)),
        rounds=draw(st.integers(1, 10**6)) if by_rounds else None,
        epochs=None if by_rounds else draw(finite),
        eval_every=draw(st.integers(0, 100)),
    )
    data = Data(
        source=draw(st.sampled_from(["cifar10", "mnist", "parquet"])),
        path="p" + draw(words),
        validation_column="c" + draw(words),
        shape=tuple(draw(st.lists(st.integers(1, 512), max_size=4))),
        classes=draw(st.none() | st.integers(2, 1000)),
        scale=draw(finite),
    )
    net = Net(name="n" + draw(words), arguments=draw(st.dictionaries(words, scalars, max_size=4)))
    diloco = draw(st.booleans())
    sync = Sync(
        strategy="diloco" if diloco else draw(st.sampled_from(["average", "none"])),
        local_steps=draw(st.integers(1, 500)),
        outer_learning_rate=draw(st.none() | finite) if diloco else None,
        outer_nesterov=draw(st.none() | st.booleans()) if diloco else None,
    )
    solver = Solver(learning_rate=draw(finite), momentum=draw(st.floats(0, 0.999)))
    return RunConfig(run=run, data=data, net=net, sync=sync, solver=solver)


@given(configurations())
def test_encode_and_decode_are_inverse(config):
    assert decode(RunConfig, encode(config)) == config


@given(configurations())
def test_files_read_back_as_written(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "run.toml"
    write_config(config, path)
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (3, 8, 8), "resize": (9, 8)}, r"data\.shape is \[3, 8, 8\], data\.resize is \[9, 8\]"),
        ({"features": ("a",), "crop": 8}, r"data\.features is \['a'\]; what they make is no image"),
        ({"features": ("a",), "image": "b"}, r"data\.image is .*, data\.features is .*leave the other out"),
        ({"mean": "image", "mean_values": (1.0,)}, "at most one can be given"),
        ({"std": "channel", "std_values": (1.0,)}, "at most one can be given"),
        ({"validation_labels": "x"}, r"data\.validation_labels is .x.; they belong to data\.validation_path"),
    ],
)
def test_settings_of_data_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        Data(source="parquet", path="p", validation_fraction=0.5, **settings)
    fits = {"shape": (3, 8, 8), "resize": (8, 8), "crop": 4}
    assert Data(source="parquet", path="p", validation_fraction=0.5, **fits).crop == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """Sections of a command that trains nothing."""

    cluster: Cluster


def test_a_section_alone_is_built_as_in_a_run():
    placed = sections_from(Placed, {"cluster": {"task_failures": 4}}, ["cluster.grace_seconds=7.5"])
    assert placed.cluster == Cluster(task_failures=4, grace_seconds=7.5)
    with pytest.raises(ConfigError, match=r"--set: cluster.task_failures is 0; it must be at least 1"):
        sections_from(Placed, {"cluster": {}}, ["cluster.task_failures=0"])
    with pytest.raises(ConfigError, match="run is not a known key"):
        sections_from(Placed, {"cluster": {}, "run": {"rounds": 1}})
