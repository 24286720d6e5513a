"""Fields that forks of Caffe write and BVLC Caffe 1.0 does not have.

The parser passes over a field of `HARMLESS`: no number that a net computes depends on it. A field of `REFUSED`
changes numbers; it is listed so that the error can say what it does, and so that the one value that does nothing is
passed over as well. Any other unknown field is an error.
"""

from typing import NamedTuple

__all__ = ["ENGINES", "HARMLESS", "REFUSED", "Refusal"]

# Which library computes is no part of a net: DEFAULT leaves the choice open.
ENGINES = ("MKL2017", "MKLDNN")
"""Values that Intel Caffe adds to every `engine`; they are read as DEFAULT."""

_PRECISION = "NVCaffe: the type a layer computes in; SparkNet has its own setting for precision"
_CUDNN = "NVCaffe: which of cuDNN's algorithms computes the same thing"
_ENGINE = "which library computes the same thing"
_LOSS_SCALE = "NVCaffe: scales gradients in half precision and divides it out again before the update"
_READER = "NVCaffe: threads and memory of its database reader"
_SEED = "NVCaffe: the seed of one layer's random numbers; SparkNet draws its own"

_DETECTION = "SSD: how its detections are measured and shown"

HARMLESS: dict[str, dict[str, str]] = {
    "NetParameter": {
        "default_forward_type": _PRECISION,
        "default_backward_type": _PRECISION,
        "default_forward_math": _PRECISION,
        "default_backward_math": _PRECISION,
        "default_conv_algos_override": _CUDNN,
        "default_cudnn_math_override": _CUDNN,
        "global_grad_scale": _LOSS_SCALE,
        "global_grad_scale_adaptive": _LOSS_SCALE,
        "reduce_buckets": "NVCaffe: how many pieces the gradients are sent in",
        "compile_net_state": f"Intel Caffe: {_ENGINE}",
        "multinode": "Intel Caffe: how its machines share the work; SparkNet has its own settings for that",
        "engine": f"Intel Caffe: {_ENGINE}",
    },
    "LayerParameter": {
        "forward_type": _PRECISION,
        "backward_type": _PRECISION,
        "forward_math": _PRECISION,
        "backward_math": _PRECISION,
        "cudnn_math_override": _CUDNN,
        "debug": "NVCaffe: prints",
        "engine": f"Intel Caffe: {_ENGINE}",
    },
    "ConvolutionParameter": {
        "cudnn_convolution_algo_seeker": _CUDNN,
        "conv_algos_override": _CUDNN,
    },
    "BatchNormParameter": {"engine": f"NVCaffe, Intel Caffe: {_ENGINE}"},
    "DropoutParameter": {"engine": f"NVCaffe: {_ENGINE}", "random_seed": _SEED},
    "DataParameter": {
        "threads": _READER,
        "parser_threads": _READER,
        "cache": _READER,
    },
    "TransformationParameter": {
        "use_gpu_transform": "NVCaffe: where an image is prepared",
        "random_seed": _SEED,
    },
    "MemoryDataParameter": {"share_in_parallel": "CaffeOnSpark: how its threads share the rows"},
    "SolverParameter": {
        "ap_version": _DETECTION,
        "show_per_class_result": _DETECTION,
        "solver_data_type": _PRECISION,
        "store_blobs_in_old_format": "NVCaffe: how it writes its own snapshots",
    },
}
"""By message and field: who writes it, and what it decides."""


# Files of forks set these even where they do nothing (`min_lr: 0`), so their neutral values must pass.
class Refusal(NamedTuple):
    """A field that changes numbers."""

    effect: str
    """What it does, and what to write instead."""
    neutral: tuple[str, ...]
    """Spellings of the value that does nothing; with it, the field is passed over."""


# As they may be written: such a field has no type here, so its value is compared as text.
_FALSE = ("false", "False", "f", "0")
_ZERO = ("0", "0.", "0.0", "0f")
_RATE = "choose an lr_policy of Caffe 1.0"
_MOMENTUM = "it changes the momentum while training: give momentum alone"
_LOCAL_RATE = "it sets the learning rate of each layer from its gradients: remove it"
_RESIZE = "it resizes images: resize where SparkNet reads them"
_TEXTURE = "it changes an image's colours at random (SSD): remove it"
_EXPAND = "it puts an image into a larger one at random (SSD): remove it"
_RECTANGLE = "it cuts a rectangle out (SSD): give crop_size, the side of a square"
_BOXES = "it decides what becomes of boxes (SSD), which BVLC Caffe's layers do not have: remove it"
_FRAMES = "it cuts frames at places and sizes of its own (TSN): give crop_size alone"
_ROWS_OF_SPARK = "it names the rows (CaffeOnSpark): write a Data layer that names an LMDB, or give --data KIND:PATH"
_CLASS_WEIGHTS = "it weighs the classes (SegNet): write InfogainLoss with the weights on its matrix's diagonal"
_LABEL_IMAGES = "its labels are images (DeepLab): write an ImageData or Data layer of their own for the labels"
_INNER_SCALE = "it belongs to a Scale layer inside the BatchNorm layer: write a Scale layer after it"

REFUSED: dict[str, dict[str, Refusal]] = {
    "BatchNormParameter": {
        "scale_bias": Refusal(_INNER_SCALE, _FALSE),
        "scale_filler": Refusal(_INNER_SCALE, ()),
        "bias_filler": Refusal(_INNER_SCALE, ()),
    },
    "ConvolutionParameter": {
        "relu": Refusal("it applies a ReLU to the output: write a ReLU layer after it", _FALSE)
    },
    "DataParameter": {
        "shuffle": Refusal("it changes the order of the records: shuffle where SparkNet reads them", _FALSE)
    },
    "DropoutParameter": {
        "scale_train": Refusal(
            "it leaves the factor to testing: write a Power layer with scale 1 - dropout_ratio after the layer",
            ("true", "True", "t", "1"),
        )
    },
    "ELUParameter": {
        "lambda": Refusal(
            "it multiplies the output: write a Power layer with scale after it", ("1", "1.", "1.0", "1f")
        )
    },
    "ImageDataParameter": {
        "label_type": Refusal(_LABEL_IMAGES, ()),
    },
    "LossParameter": {
        "weight_by_label_freqs": Refusal(_CLASS_WEIGHTS, _FALSE),
        "class_weighting": Refusal(_CLASS_WEIGHTS, ()),
        "pre_fixed_normalizer": Refusal("it divides the loss (R-FCN): give loss_weight", ("1", "1.", "1.0", "1f")),
    },
    "MemoryDataParameter": {
        "source": Refusal(_ROWS_OF_SPARK, ()),
        "image_encoded": Refusal(_ROWS_OF_SPARK, _FALSE),
        "dataframe_column_select": Refusal(_ROWS_OF_SPARK, ()),
        "dataframe_format": Refusal(_ROWS_OF_SPARK, ()),
    },
    "SolverParameter": {
        "eval_type": Refusal("it measures detections (SSD): remove it", ('"classification"', "'classification'")),
        "min_lr": Refusal(f"it bounds the learning rate from below: {_RATE}", _ZERO),
        "rampup_interval": Refusal(f"it raises the learning rate at the start: {_RATE}", _ZERO),
        "rampup_lr": Refusal(f"it raises the learning rate at the start: {_RATE}", _ZERO),
        "plateau_winsize": Refusal(f"it lowers the learning rate on a plateau of the loss: {_RATE}", ()),
        "momentum_policy": Refusal(_MOMENTUM, ('"fixed"', "'fixed'")),
        "max_momentum": Refusal(_MOMENTUM, ()),
        "momentum_power": Refusal(_MOMENTUM, ()),
        "local_lr_auto": Refusal(_LOCAL_RATE, _FALSE),
        "local_gw_ratio": Refusal(_LOCAL_RATE, ()),
    },
    "TransformationParameter": {
        "img_rand_resize_lower": Refusal(_RESIZE, _ZERO),
        "img_rand_resize_upper": Refusal(_RESIZE, _ZERO),
        "resize_param": Refusal(_RESIZE, ()),
        "resize_to_square": Refusal(_RESIZE, _FALSE),
        "crop_h": Refusal(_RECTANGLE, _ZERO),
        "crop_w": Refusal(_RECTANGLE, _ZERO),
        "distort_param": Refusal(_TEXTURE, ()),
        "noise_param": Refusal(_TEXTURE, ()),
        "expand_param": Refusal(_EXPAND, ()),
        "emit_constraint": Refusal(_BOXES, ()),
        "fix_crop": Refusal(_FRAMES, _FALSE),
        "more_fix_crop": Refusal(_FRAMES, _FALSE),
        "multi_scale": Refusal(_FRAMES, _FALSE),
        "max_distort": Refusal(_FRAMES, _ZERO),
        "scale_ratios": Refusal(_FRAMES, ()),
        "is_flow": Refusal("it turns the sign of one direction of mirrored flow (TSN): remove it", _FALSE),
    },
}
"""By message and field: what it does to the numbers, and when it does nothing."""
