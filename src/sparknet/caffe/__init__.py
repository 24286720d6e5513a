"""Caffe's formats and numbers in torch: nets, layers, weights, solvers, the zoo. A library by itself."""

from sparknet.caffe import zoo
from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.solver.caffe_solver import CaffeSolver

__all__ = ["CaffeNet", "CaffeSolver", "NetSpec", "zoo"]
