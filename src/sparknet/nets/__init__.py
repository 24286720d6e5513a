"""Networks: the zoo, and finding and building a net by name."""

from sparknet.nets.find import build_net, find_net
from sparknet.nets.zoo import cifar10_quick, digits_cnn, lenet

__all__ = ["build_net", "cifar10_quick", "digits_cnn", "find_net", "lenet"]
