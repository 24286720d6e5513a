"""Networks: Caffe nets as torch modules, the zoo, and finding and building a net by name."""

from sparknet.nets import zoo
from sparknet.nets.caffe_net import CaffeNet
from sparknet.nets.find import build_net, find_net
from sparknet.nets.spec import NetSpec

__all__ = ["CaffeNet", "NetSpec", "build_net", "find_net", "zoo"]
