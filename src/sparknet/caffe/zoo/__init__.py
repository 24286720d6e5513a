"""The zoo: nets that are found by a bare name.

Each is a function of `input_shape` (one row without the batch axis, (channels, height, width) for images),
`classes` and `batch_size`, all with the published values as defaults, and returns the net as a `NetSpec`. Layers,
blobs, fillers and multipliers are those of the published files, so that published weights find their layers.

Inputs are `data` and `label`. In TRAIN there is the loss, in TEST the accuracy besides. Stage `deploy` leaves out
labels, losses and accuracies and has the probabilities, `prob`, instead:

    CaffeNet(caffenet(), "TEST", stages=["deploy"])

`digits_cnn` alone is no Caffe net; it returns an `nn.Module` from images to logits.
"""

from sparknet.caffe.zoo.alexnets import alexnet, caffenet
from sparknet.caffe.zoo.census import adult
from sparknet.caffe.zoo.cifar import cifar10_full, cifar10_quick
from sparknet.caffe.zoo.digits import digits_cnn
from sparknet.caffe.zoo.inception import googlenet
from sparknet.caffe.zoo.mnist import lenet
from sparknet.caffe.zoo.residual import resnet18, resnet50
from sparknet.caffe.zoo.squeeze import squeezenet
from sparknet.caffe.zoo.vgg import vgg16

__all__ = [
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
]
