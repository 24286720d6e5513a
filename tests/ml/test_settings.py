"""From Params to a run's configuration."""

import functools

import numpy as np
import pytest
import torch
import torchmetrics
from torch.nn import functional

from sparknet.errors import ConfigError
from sparknet.ml import Average, DiLoCo, Measure, SparkNetClassifier, SparkNetEstimator, SparkNetRegressor
from sparknet.ml.settings import fit_of, in_params


def config_of(estimator, **keywords):
    kind = {SparkNetClassifier: "category", SparkNetRegressor: "number"}.get(type(estimator))
    return fit_of(estimator, label_kind=kind, **keywords).config


def test_each_param_reaches_its_key():
    config = config_of(
        SparkNetClassifier(
            net="lenet",
            optimizer="AdamW",
            learningRate=0.003,
            loss="nll_loss",
            metrics=["classification.F1Score"],
            numWorkers=(2, 6),
            localSteps=7,
            batchSize=16,
            maxRounds=9,
            featuresCol="pixels",
            labelCol="kind",
            weightCol="w",
            validationIndicatorCol="held",
            store="/shards",
            seed=3,
            device="cpu",
            precision="bf16",
            checkpointEvery=4,
            earlyStop=5,
        )
    )
    assert (config.net.name, config.solver.optimizer, config.solver.learning_rate) == ("lenet", "AdamW", 0.003)
    assert (config.objective.loss, config.objective.measures) == ("nll_loss", ("classification.F1Score",))
    assert (config.run.min_workers, config.run.workers, config.sync.local_steps) == (2, 6, 7)
    assert (config.solver.batch_size, config.run.rounds, config.run.epochs) == (16, 9, None)
    assert (config.data.image, config.data.label, config.data.weight) == ("pixels", "kind", "w")
    assert config.data.columns["kind"].kind == "category"
    assert (config.data.validation_column, config.data.validation, config.data.store) == ("held", None, "/shards")
    assert (config.run.seed, config.cluster.device, config.solver.precision) == (3, "cpu", "bf16")
    assert config.run.checkpoint_every == 4
    assert config.run.early_stop.patience == 5
    assert config.run.keep == "best"


def test_where_nothing_is_said_it_trains_for_ten_epochs_on_all_rows():
    config = config_of(SparkNetRegressor(net="lenet"))
    assert (config.run.epochs, config.run.rounds, config.data.validation) == (10.0, None, "none")
    assert config.data.columns["label"].kind == "number"
    assert not config_of(SparkNetEstimator(net="lenet")).data.columns


def test_several_inputs_and_targets():
    config = config_of(SparkNetEstimator(net="m:f", inputCols=["a", "b"], targetCols=["x", "y"]))
    assert (config.data.input_names, config.data.target_names) == (("a", "b"), ("x", "y"))


def test_columns_are_put_together_by_the_configuration():
    config = config_of(SparkNetEstimator(net="m:f", config={"data.features": ["a", "b"]}))
    assert (config.data.features, config.data.input_names) == (("a", "b"), ("features",))


@pytest.mark.parametrize(
    ("sync", "strategy", "pace"),
    [("none", "none", "fixed"), (Average(pace="balanced"), "average", "balanced"), (DiLoCo(), "diloco", "fixed")],
)
def test_ways_to_agree(sync, strategy, pace):
    found = config_of(SparkNetClassifier(net="lenet", sync=sync)).sync
    assert (found.strategy, found.pace, found.local_steps) == (strategy, pace, 10)


def test_the_outer_optimiser_of_diloco():
    found = config_of(SparkNetClassifier(net="lenet", sync=DiLoCo(lr=0.5, momentum=0.8, nesterov=False))).sync
    assert (found.outer.learning_rate, found.outer.momentum, found.outer.nesterov) == (0.5, 0.8, False)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, "Adam"])
def test_an_optimizer_by_class_or_name(optimizer):
    assert config_of(SparkNetClassifier(net="lenet", optimizer=optimizer)).solver.optimizer == "Adam"


def test_an_optimizer_with_its_arguments():
    given = functools.partial(torch.optim.AdamW, lr=0.002, weight_decay=0.1, betas=(0.8, 0.9))
    solver = config_of(SparkNetClassifier(net="lenet", optimizer=given)).solver
    assert (solver.optimizer, solver.learning_rate, solver.weight_decay) == ("AdamW", 0.002, 0.1)
    assert list(solver.arguments["betas"]) == [0.8, 0.9]


def test_losses_of_torch_go_by_their_names_and_others_beside_the_configuration():
    assert (
        config_of(SparkNetClassifier(net="lenet", loss=functional.cross_entropy)).objective.loss == "cross_entropy"
    )

    def mine(outputs, targets):
        return functional.cross_entropy(outputs, targets)

    asked = fit_of(SparkNetClassifier(net="lenet", loss=mine), label_kind="category")
    assert asked.code[asked.config.objective.loss] is mine


@pytest.mark.parametrize("metric", ["R2Score", torchmetrics.R2Score, Measure(name="R2Score")])
def test_metrics_by_name_class_or_measure(metric):
    measures = config_of(SparkNetRegressor(net="lenet", metrics=[metric])).objective.measures
    assert [one if isinstance(one, str) else one.name for one in measures] == ["R2Score"]


@pytest.mark.parametrize("config", [{"solver.policy": "cosine"}, {"solver": {"policy": "cosine"}}])
def test_everything_else_is_in_config(config):
    assert config_of(SparkNetClassifier(net="lenet", config=config)).solver.policy == "cosine"


def test_arguments_of_a_net_are_a_table():
    config = config_of(SparkNetClassifier(net="digits_cnn", config={"net.arguments": {"width": 4}}))
    assert config.net.arguments == {"width": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config": {"solver.batch_size": 8}, "batchSize": 4},
            "config has solver.batch_size, and batchSize is set",
        ),
        ({"config": {"data.image": "x"}}, "config has data.image, which is Param featuresCol: set that"),
        (
            {"config": {"run.early_stop.patience": 2}, "earlyStop": 3},
            "config has run.early_stop.patience, and earlyStop",
        ),
        (
            {"config": {"sync.outer_momentum": 0.1}, "sync": DiLoCo()},
            "config has sync.outer_momentum, and sync is set",
        ),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=1.0), "learningRate": 0.1}, "optimizer has lr, and"),
        ({"optimizer": functools.partial(torch.optim.SGD, [1])}, "arguments without names"),
        ({"optimizer": type("SGD", (torch.optim.SGD,), {})}, "it must be a class of torch.optim, which every"),
        ({"config": {"data.path": "x"}}, "config has data.path; the rows come from the DataFrame"),
        ({"config": {"solver.polcy": "step"}}, "solver.polcy is not a known key; did you mean policy"),
        ({"config": {"policy": "step"}}, r"config has policy; the form is"),
        ({"numWorkers": "2"}, "numWorkers is '2'; it must be a whole number, or a pair"),
        ({"numWorkers": (3, 2)}, "run.min_workers"),
        ({"optimizer": 3}, "optimizer is 3; it must be a class of torch.optim"),
        ({"loss": 3}, "loss is 3; it must be a function"),
        ({"metrics": [3]}, "metrics has 3"),
        ({"sync": 3}, "sync is 3; it must be 'average'"),
        ({"earlyStop": "soon", "validationIndicatorCol": "v"}, "earlyStop is 'soon'"),
        ({"earlyStop": True}, "no rows are held out to judge by"),
        ({"maxEpochs": 1.0, "maxRounds": 2}, "exactly one must be given"),
        ({"net": 3}, "net is 3; it must be the name of a net in the zoo"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, message):
    with pytest.raises(ConfigError, match=message):
        config_of(SparkNetClassifier(**{"net": "lenet", **options}))


def test_messages_about_keys_name_the_params():
    told = in_params("column x is not in the data: set data.image, or solver.policy")
    assert told.endswith("set data.image, or solver.policy (data.image is Param featuresCol)")
    assert in_params("data.images is another word") == "data.images is another word"


def test_what_is_said_of_one_column_leaves_the_others():
    given = {"data.columns": {"features": {"kind": "array"}}}
    config = config_of(SparkNetRegressor(net="lenet", config=given))
    assert (config.data.columns["label"].kind, config.data.columns["features"].kind) == ("number", "array")
    assert given == {"data.columns": {"features": {"kind": "array"}}}


def test_a_grid_over_numbers_of_numpy():
    assert config_of(SparkNetClassifier(net="lenet", numWorkers=np.int64(3))).run.workers == 3


def test_a_net_is_needed():
    with pytest.raises(ConfigError, match=r"net is not given; an entry of the zoo by name"):
        config_of(SparkNetClassifier())


def test_a_second_frame_marks_the_validation_rows():
    assert config_of(SparkNetClassifier(net="lenet"), validation_frame=True).data.validation_path
    with pytest.raises(ConfigError, match="validationIndicatorCol is 'v' and a DataFrame of validation rows"):
        config_of(SparkNetClassifier(net="lenet", validationIndicatorCol="v"), validation_frame=True)
