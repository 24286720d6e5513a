"""What others may build on: the names each package lists, and a command line that answers at once."""

import importlib
import json
import pkgutil
import statistics
import subprocess
import sys
import time

import pytest

import sparknet

# A change here is a change of the public surface: it belongs into CHANGELOG.md.
SURFACE = {
    "sparknet": ["__version__", "train"],
    "sparknet.cli": [],
    "sparknet.config": [
        "Beside",
        "Cluster",
        "Data",
        "DataColumn",
        "EarlyStop",
        "Measure",
        "Net",
        "Objective",
        "OuterOptimiser",
        "ParameterGroup",
        "Run",
        "RunConfig",
        "Solver",
        "Sync",
        "TestRows",
        "Windows",
        "decode",
        "encode",
        "load_config",
        "override",
        "write_config",
    ],
    "sparknet.data": [],
    "sparknet.ml": [
        "Average",
        "DiLoCo",
        "Measure",
        "SparkNetClassificationModel",
        "SparkNetClassifier",
        "SparkNetEstimator",
        "SparkNetModel",
        "SparkNetRegressionModel",
        "SparkNetRegressor",
        "TrainResult",
        "TrainingSummary",
        "train",
    ],
    "sparknet.errors": [
        "BadImage",
        "CheckpointError",
        "ClusterError",
        "ConfigError",
        "DataError",
        "MissingDependency",
        "NetError",
        "RunDirError",
        "SparkNetError",
        "TrainingDiverged",
        "Unauthorized",
        "UsageError",
        "WorkerError",
    ],
    "sparknet.caffe": ["CaffeNet", "CaffeSolver", "NetSpec", "zoo"],
    "sparknet.caffe.prototxt": ["Parsed", "format_text", "parse_text", "read_content", "read_text"],
    "sparknet.caffe.dsl": [
        "AccuracyLayer",
        "BatchNormLayer",
        "ConcatLayer",
        "ConvolutionLayer",
        "DeconvolutionLayer",
        "DropoutLayer",
        "EltwiseLayer",
        "EuclideanLoss",
        "FlattenLayer",
        "InnerProductLayer",
        "InputLayer",
        "LRNLayer",
        "Layer",
        "NetParam",
        "Options",
        "Param",
        "Pooling",
        "PoolingLayer",
        "RDDLayer",
        "ReLULayer",
        "ReshapeLayer",
        "Rule",
        "ScaleLayer",
        "SigmoidCrossEntropyLoss",
        "SigmoidLayer",
        "SliceLayer",
        "SoftmaxLayer",
        "SoftmaxWithLoss",
        "TanHLayer",
        "bilinear",
        "constant",
        "gaussian",
        "msra",
        "positive_unitball",
        "uniform",
        "xavier",
    ],
    "sparknet.caffe.weights": ["Weights", "read_mean", "read_weights", "write_mean"],
    "sparknet.caffe.zoo": [
        "adult",
        "alexnet",
        "caffenet",
        "cifar10_full",
        "cifar10_quick",
        "digits_cnn",
        "googlenet",
        "lenet",
        "resnet18",
        "resnet50",
        "squeezenet",
        "vgg16",
    ],
    "sparknet.reporting": ["Console", "LiveConsole", "PlainConsole", "TrainingLog", "open_console"],
    "sparknet.spark": [],
    "sparknet.training": [],
    "sparknet.whole_files": ["tidy", "whole_directory", "whole_file"],
}

HELP = [sys.executable, "-m", "sparknet.cli.main", "--help"]


@pytest.mark.parametrize("package", SURFACE)
def test_public_names_are_the_listed_ones_and_exist(package):
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", []))
    assert sorted(names) == SURFACE[package]
    assert all(hasattr(module, name) for name in names)


def test_every_package_is_listed_here():
    found = {f"sparknet.{module.name}" for module in pkgutil.iter_modules(sparknet.__path__)}
    assert found | {"sparknet"} == {name for name in SURFACE if name.count(".") < 2}


def test_every_module_lists_its_public_names():
    unlisted = [
        module.name
        for module in pkgutil.walk_packages(sparknet.__path__, "sparknet.")
        if not module.ispkg
        and not module.name.endswith("_pb2")  # generated
        and not hasattr(importlib.import_module(module.name), "__all__")
    ]
    assert unlisted == []


def test_help_answers_within_three_tenths_of_a_second():
    seconds: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.3, seconds


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["no-such-command"]])
def test_parsing_imports_no_heavy_package(arguments):
    program = (
        "import json, sys\n"
        "from sparknet.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print()\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "sparknet.cli.main" in loaded
    assert not loaded & {"torch", "pyspark", "pyarrow", "numpy", "pandas"}
