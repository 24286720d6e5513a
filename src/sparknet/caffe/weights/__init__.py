"""Weight files and mean images: what Caffe wrote is read, and what is written Caffe would have written."""

from sparknet.caffe.weights.caffemodel import Weights, read_weights
from sparknet.caffe.weights.mean_image import read_mean, write_mean

__all__ = ["Weights", "read_mean", "read_weights", "write_mean"]
