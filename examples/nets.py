"""The networks of the examples: plain PyTorch modules, which know nothing of Spark."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Regression(nn.Module):
    """Three numbers in, one number out. Columns are given by the names of `forward`'s parameters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, age: Tensor, bmi: Tensor, pressure: Tensor) -> Tensor:
        """The progression [n, 1] of the disease after a year, for [n, 1] each."""
        return self.layers(torch.cat([age, bmi, pressure], dim=1))


class Sentences(nn.Module):
    """A small encoder in the manner of BERT: token numbers in, a score for every class out."""

    def __init__(self, classes: int, words: int = 64, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores [n, classes] of int64 [n, length], in which 0 is padding."""
        padding = tokens == 0
        states = self.encoder(self.words(tokens) + self.places[: tokens.shape[1]], src_key_padding_mask=padding)
        # The mean over the words alone, or short sentences would be known by their padding.
        words = (~padding).unsqueeze(2)
        return self.head((states * words).sum(1) / words.sum(1))


class Convolutions(nn.Module):
    """What two convolutions see in an 8x8 image: 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Features [n, 64] of images [n, 1, 8, 8]."""
        return self.layers(image)


class Digits(nn.Module):
    """A convolutional net with one head: a score for every digit."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Convolutions()
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, 10]."""
        return self.head(self.backbone(image))


class TwoHeads(nn.Module):
    """One backbone, two questions: which digit, and how much ink."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Convolutions()
        self.digit = nn.Linear(64, 10)
        self.ink = nn.Linear(64, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores [n, 10] and ink [n]."""
        features = self.backbone(image)
        return {"digit": self.digit(features), "ink": self.ink(features).squeeze(1)}


def two_losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """The loss of `TwoHeads`: cross-entropy of the digit and squared error of the ink."""
    digit = functional.cross_entropy(outputs["digit"], targets["digit"])
    return digit + 0.5 * functional.mse_loss(outputs["ink"], targets["ink"])
