"""A solver file's values: which are taken, what they default to, and what is refused."""

import pytest
from google.protobuf import text_format

from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.errors import ConfigError

GOOD = 'net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed"'


def settings(text: str) -> SolverSettings:
    return SolverSettings.from_message(text_format.Parse(text, SolverParameter()), "solver.prototxt")


def test_defaults_are_caffes():
    found = settings(GOOD)
    rule = found.rule
    assert (rule.type, rule.momentum, rule.momentum2, rule.rms_decay) == ("SGD", 0, 0.999, 0.99)
    assert (rule.weight_decay, rule.regularization_type, rule.iter_size, rule.delta) == (0, "L2", 1, 1e-8)
    assert rule.clip_gradients < 0
    assert (found.max_iter, found.snapshot) == (None, 0)
    assert (found.test_iter, found.test_interval, found.test_initialization) == ((), 0, True)
    assert (found.snapshot_after_train, found.snapshot_format, found.random_seed) == (True, "BINARYPROTO", -1)


def test_every_value_arrives():
    found = settings(
        """
        train_net: "train.prototxt" test_net: "a.prototxt" test_net: "b.prototxt"
        test_iter: 3 test_iter: 4 test_interval: 50 test_initialization: false test_compute_loss: true
        base_lr: 0.25 lr_policy: "multistep" gamma: 0.5 stepvalue: 10 stepvalue: 20 power: 2
        stepsize: 7 max_iter: 99
        type: "Adam" momentum: 0.75 momentum2: 0.875 delta: 0.125 rms_decay: 0.5 weight_decay: 0.0625
        regularization_type: "L1" clip_gradients: 35 iter_size: 2 display: 20 average_loss: 40
        snapshot: 1000 snapshot_prefix: "p" snapshot_after_train: false snapshot_format: HDF5
        random_seed: 7 weights: "one.caffemodel" weights: "two.caffemodel"
        """
    )
    policy, rule = found.policy, found.rule
    assert (policy.base_lr, policy.lr_policy, policy.gamma, policy.stepvalue) == (0.25, "multistep", 0.5, (10, 20))
    assert (policy.power, policy.stepsize, policy.max_iter, found.max_iter) == (2, 7, 99, 99)
    assert (rule.type, rule.momentum, rule.momentum2, rule.delta) == ("Adam", 0.75, 0.875, 0.125)
    assert (rule.rms_decay, rule.weight_decay, rule.regularization_type) == (0.5, 0.0625, "L1")
    assert (rule.clip_gradients, rule.iter_size) == (35, 2)
    assert (found.test_iter, found.test_interval) == ((3, 4), 50)
    assert (found.test_initialization, found.random_seed) == (False, 7)
    assert (found.snapshot, found.snapshot_prefix, found.snapshot_format) == (1000, "p", "HDF5")
    assert (found.snapshot_after_train, found.weights) == (False, ("one.caffemodel", "two.caffemodel"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('net: "n" lr_policy: "fixed"', "base_lr is missing"),
        ('net: "n" base_lr: 1', "lr_policy is missing"),
        (GOOD.replace("fixed", "stepp"), r"lr_policy is 'stepp', did you mean 'step'\?"),
        (GOOD + ' type: "Adagrad"', r"type is 'Adagrad', did you mean 'AdaGrad'\?; it must be one of SGD"),
        (GOOD + ' type: "LARS"', "type is 'LARS'.*Nesterov, AdaGrad, RMSProp, AdaDelta, Adam"),
        (GOOD + " momentum: 1", "momentum is 1.0; it must be above -1 and below 1"),
        (GOOD + " momentum: -1", "momentum is -1.0; it must be above -1 and below 1"),
        (GOOD + ' type: "AdaDelta" momentum: -0.5', "momentum is -0.5; it must be at least 0 and below 1"),
        (GOOD + ' type: "AdaGrad" momentum: 0.5', "momentum is 0.5; type AdaGrad has none"),
        (GOOD + ' type: "RMSProp" momentum: 0.5', "momentum is 0.5; type RMSProp has none"),
        (GOOD + ' type: "RMSProp" rms_decay: 1', "rms_decay is 1.0"),
        (GOOD + ' type: "Adam" momentum2: 1', "momentum2 is 1.0"),
        (GOOD + ' type: "Adam" delta: 0', "delta is 0.0; type Adam divides by it"),
        (GOOD + " weight_decay: -1", "weight_decay is -1.0"),
        (GOOD + " weight_decay: nan", "weight_decay is nan; it must be a finite number"),
        (GOOD + ' regularization_type: "l2"', "regularization_type is 'l2'; it must be 'L2' or 'L1'"),
        (GOOD + " clip_gradients: 0", "clip_gradients is 0.0; every gradient would become 0"),
        (GOOD + " iter_size: 0", "iter_size is 0; it must be at least 1"),
        (GOOD + " snapshot: -1", "snapshot is -1"),
        (GOOD + " max_iter: -1", "max_iter is -1"),
        (GOOD + " test_iter: 5", "test_interval is 0; test_iter asks for 1 test nets"),
        (GOOD + " test_iter: -5 test_interval: 5", "test_iter is -5"),
        (GOOD + ' train_net: "t"', "net and train_net is given together; there is one training net"),
        (GOOD + ' test_net: "t" test_interval: 1', "test_iter is given 0 times.*1 test nets.*at least 1"),
        (
            'train_net: "n" base_lr: 1 lr_policy: "fixed" test_iter: 1 test_interval: 1',
            "test_iter is given 1 times.*exactly 0",
        ),
        (
            GOOD.replace("net:", "test_net:") + " test_iter: 1 test_iter: 1 test_interval: 1",
            "net is missing; .*set net",
        ),
        (GOOD + " test_iter: 1 test_interval: 1 test_state {} test_state {}", "test_state is given 2 times"),
    ],
)
def test_errors_name_file_key_and_value(text: str, message: str):
    with pytest.raises(ConfigError, match=f"^solver.prototxt: {message}"):
        settings(text)


def test_a_solver_without_net_has_settings_all_the_same():
    assert settings('base_lr: 1 lr_policy: "fixed"').policy.base_lr == 1


def test_nets_do_not_matter_where_they_are_told_elsewhere():
    text = 'train_net: "n" base_lr: 1 lr_policy: "fixed" test_iter: 1 test_interval: 1'
    message = text_format.Parse(text, SolverParameter())
    assert SolverSettings.from_message(message, own_nets=False).test_iter == (1,)


def test_adadelta_needs_no_rate(caplog):
    assert settings(GOOD.replace("base_lr: 0.5", 'type: "AdaDelta"')).policy.base_lr == 1
    assert caplog.messages[0].startswith("solver.prototxt: base_lr is missing: it is taken as 1")


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
def test_momentum_may_be_negative(kind):
    assert settings(f'{GOOD} type: "{kind}" momentum: -0.25').rule.momentum == -0.25
