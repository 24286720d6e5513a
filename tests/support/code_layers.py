"""Python layers as Caffe's users write them, for nets of the tests, which import this module by way of them."""

import random

import caffe
import numpy as np


class EuclideanLoss(caffe.Layer):
    """Written as most published losses are: it does not look at its top's gradient."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception(f"need two inputs, not {len(bottom)}")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception("inputs must have the same dimension")
        self.difference = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for place in range(2):
            if propagate_down[place]:
                bottom[place].diff[...] = (1 if place == 0 else -1) * self.difference / bottom[place].num


class Bilinear(caffe.Layer):
    """Sum over i and j of x_i W_ij y_j, plus b; x and y are the bottoms, W and b its blobs."""

    def setup(self, bottom, top):
        x, y = bottom[0].data, bottom[1].data
        self.blobs.add_blob(x.shape[1], y.shape[1])
        self.blobs.add_blob(1)
        random.seed(7)
        self.blobs[0].data[...] = [[random.gauss(0, 1) for _ in range(y.shape[1])] for _ in range(x.shape[1])]

    def reshape(self, bottom, top):
        top[0].reshape(bottom[0].num, 1)

    def forward(self, bottom, top):
        x, y, weight = bottom[0].data, bottom[1].data, self.blobs[0].data
        top[0].data[:, 0] = np.einsum("ni,ij,nj->n", x, weight, y) + self.blobs[1].data[0]

    def backward(self, top, propagate_down, bottom):
        x, y, weight, diff = bottom[0].data, bottom[1].data, self.blobs[0].data, top[0].diff
        self.blobs[0].diff[...] += np.einsum("n,ni,nj->ij", diff[:, 0], x, y)
        self.blobs[1].diff[...] += diff.sum()
        if propagate_down[0]:
            bottom[0].diff[...] = diff * (y @ weight.T)
        if propagate_down[1]:
            bottom[1].diff[...] = diff * (x @ weight)


class Square(caffe.Layer):
    """In place too: it needs nothing but what it has kept."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        self.kept = bottom[0].data.copy()
        top[0].data[...] = self.kept**2

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 2 * self.kept * top[0].diff


class Place(caffe.Layer):
    """Tells what the layer is told: its phase, its replica and how many there are, and what is drawn."""

    def setup(self, bottom, top):
        assert str(self.phase) == ("TRAIN" if self.phase == caffe.TRAIN else "TEST")
        self.drawn = [np.random.rand(), random.random()]
        if bottom:
            self.blobs.add_blob(1)
            self.blobs[0].data[...] = self.drawn[0]
        top[0].reshape(1, 4)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        top[0].data[0] = [self.phase, caffe.solver_rank(), caffe.solver_count(), np.random.rand()]

    def backward(self, top, propagate_down, bottom):
        pass


class Counter(caffe.Layer):
    """Writes into its blob and adds to its top, whose memory lasts from pass to pass."""

    def setup(self, bottom, top):
        self.blobs.add_blob()
        top[0].reshape(2)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.blobs[0].data[...] += 1
        top[0].data[0] += 1
        top[0].data[1] = self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        raise Exception("nobody asks a data layer")
