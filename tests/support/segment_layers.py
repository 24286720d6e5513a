"""Python layers of a net that tells an image's regions apart: its images and its loss."""

import caffe
import numpy as np


class GrowingImages(caffe.Layer):
    """A data layer: one image and its pixels' labels, of another size at each pass, as in FCN.

    Several replicas take one image each in turn, and fail at one that is asked for.
    """

    def setup(self, bottom, top):
        parameters = eval(self.param_str)
        self.sizes = parameters["sizes"]
        self.fails_at = parameters.get("fails_at")
        self.at = caffe.solver_rank()
        if len(top) != 2 or bottom:
            raise Exception("need two tops, data and label, and no bottom")

    def reshape(self, bottom, top):
        height, width = self.sizes[self.at % len(self.sizes)]
        rows, columns = np.mgrid[:height, :width]
        # Three regions that the image shows in three colours.
        self.label = (rows // 4 + columns // 4 + self.at) % 3
        self.image = np.stack([self.label == colour for colour in range(3)]) - 0.5
        top[0].reshape(1, *self.image.shape)
        top[1].reshape(1, 1, *self.label.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.image
        top[1].data[...] = self.label
        if self.at == self.fails_at:
            raise Exception(f"image {self.at} is spoilt")
        self.at += caffe.solver_count()

    def backward(self, top, propagate_down, bottom):
        pass


class PixelLoss(caffe.Layer):
    """Mean over all pixels of -log p[label], p the softmax of the scores."""

    def setup(self, bottom, top):
        if len(bottom) != 2 or len(top) != 1:
            raise Exception("need scores and labels, and one top")

    def reshape(self, bottom, top):
        if bottom[0].shape[2:] != bottom[1].shape[2:]:
            raise Exception(f"scores of {bottom[0].shape} and labels of {bottom[1].shape}")
        top[0].reshape(1)

    def forward(self, bottom, top):
        scores, labels = bottom[0].data, bottom[1].data.astype(int)
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        self.difference = raised / raised.sum(axis=1, keepdims=True)
        chosen = np.take_along_axis(self.difference, labels, axis=1)
        top[0].data[...] = -np.log(chosen).mean()
        np.put_along_axis(self.difference, labels, chosen - 1, axis=1)

    def backward(self, top, propagate_down, bottom):
        if propagate_down[1]:
            raise Exception("labels have no gradient")
        if propagate_down[0]:
            bottom[0].diff[...] = self.difference / bottom[1].count
