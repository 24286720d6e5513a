"""A net that describes images, in the manner of LRCN (arXiv 1411.4389): a convolutional net in front of an LSTM."""

from sparknet.caffe import NetSpec
from sparknet.caffe.dsl import (
    AccuracyLayer,
    ConcatLayer,
    ConvolutionLayer,
    InnerProductLayer,
    InputLayer,
    Layer,
    NetParam,
    Pooling,
    PoolingLayer,
    ReLULayer,
    ReshapeLayer,
    SliceLayer,
    SoftmaxWithLoss,
    msra,
    xavier,
)
from sparknet.caffe.schema import LayerParameter


def captions(words: int = 27, steps: int = 6, width: int = 48, batch_size: int = 32) -> NetSpec:
    """Scores [steps, batch, words] for the word that follows each of those before it."""
    return NetParam(
        "Captions",
        InputLayer("image", shape=[batch_size, 1, 8, 8]),
        InputLayer("before", shape=[batch_size, steps]),
        InputLayer("letters", shape=[batch_size, steps]),
        ConvolutionLayer("conv", ["image"], 3, 16, pad=1, weight_filler=msra()),
        ReLULayer("relu", ["conv"], in_place=True),
        PoolingLayer("pool", ["conv"], Pooling.Max, 2, stride=2),
        InnerProductLayer("seen", ["pool"], width, weight_filler=msra()),
        *time_first("before", steps),
        *time_first("letters", steps),
        # 0 where a name begins, whatever the batch before told; 1 behind it
        Layer("Threshold", "cont", ["before_time"]),
        Layer("Embed", "embedded", ["before_time"], input_dim=words, num_output=16, weight_filler=xavier()),
        Layer("LSTM", "lstm", ["embedded", "cont", "seen"], num_output=width, weight_filler=xavier()),
        InnerProductLayer("scores", ["lstm"], words, axis=2, weight_filler=xavier()),
        # what stands behind the last letter is not told
        SoftmaxWithLoss("loss", ["scores", "letters_time"], axis=2, ignore_label=0),
        AccuracyLayer("accuracy", ["scores", "letters_time"], axis=2, ignore_label=0, phase="TEST"),
    )


def time_first(blob: str, steps: int) -> list[LayerParameter]:
    """Bring the steps of rows [batch, steps] to the front, as Caffe's recurrent layers want them: BLOB_time."""
    parts = [f"{blob}_{step}" for step in range(steps)]
    return [
        SliceLayer(f"{blob}_slice", [blob], tops=parts),
        ConcatLayer(f"{blob}_concat", parts, axis=0),
        ReshapeLayer(f"{blob}_time", [f"{blob}_concat"], shape=[steps, -1]),
    ]
