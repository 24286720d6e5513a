"""What the output of a net says of a row: a class, several at once, or numbers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparknet.config import Objective as ObjectiveSection
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import NetError
from sparknet.training.objectives.losses import is_class, loss_name

__all__ = ["Answer", "Kind", "answer_of"]

Kind = Literal["classes", "logits", "probabilities", "numbers"]

_SCORED = ("cross_entropy", "nll_loss", "multi_margin_loss")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_SCORED, "classes"),
    "binary_cross_entropy_with_logits": "logits",
    "multilabel_soft_margin_loss": "logits",
    "binary_cross_entropy": "probabilities",
}
"""What losses of torch's take; the others take numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How the output of a net is read, [batch, ...]."""

    kind: Kind
    """A score for every class along axis 1; a logit or a probability for each of several things that may be true at
    once; or the numbers themselves."""
    several: bool
    """A row has several answers, as an image with a class for each pixel, and not one."""

    def prediction(self, output: Tensor) -> Tensor:
        """Classes by number, 1 or 0 for what is true or not, or the numbers: [batch], or of several [batch, n].

        Raises:
            NetError: the output has another shape than such answers.
        """
        found = output
        if self.kind == "classes":
            self._require(output.dim() >= 2, output, "a score for every class, [batch, classes, ...]")
            # On the output as it is: a softmax keeps the order, and equal scores give the first class.
            found = output.argmax(1)
        elif self.kind != "numbers":
            found = output > (0 if self.kind == "logits" else 0.5)
        found = found.flatten(1) if found.dim() > 1 else found
        if self.several:
            return found if found.dim() > 1 else found[:, None]
        self._require(found.dim() == 1 or found.shape[1] == 1, output, "one answer for each row")
        return found if found.dim() == 1 else found[:, 0]

    def probability(self, output: Tensor) -> Tensor:
        """What is thought of each class, or of each thing: float [batch, n].

        Of a single thing that is true or not both are told, as of two classes.

        Raises:
            NetError: numbers have none.
        """
        if self.kind == "classes":
            self._require(output.dim() >= 2, output, "a score for every class, [batch, classes, ...]")
            return torch.softmax(output.float(), 1).flatten(1)
        self._require(self.kind != "numbers", output, "scores, and numbers have no probability")
        found = output.float() if self.kind == "probabilities" else torch.sigmoid(output.float())
        found = found.reshape(len(found), -1)
        return found if self.several else torch.cat([1 - found, found], 1)

    @staticmethod
    def _require(holds: bool, output: Tensor, rule: str) -> None:
        if not holds:
            raise NetError(f"the net returned {tuple(output.shape)}; a prediction takes {rule}: correct its output")


def answer_of(section: ObjectiveSection, rows: RowSchema, *, net: str) -> Answer:
    """How the output of a module is read that was trained by such a loss on such rows.

    Raises:
        NetError: there are several targets, and which of them the output is about only its loss knows.
    """
    if len(rows.targets) != 1:
        raise NetError(
            f"net {net} was trained on the targets {', '.join(column.name for column in rows.targets)}; a "
            "prediction is of one: ask for raw or for blobs"
        )
    (target,) = rows.targets
    kind = _KINDS.get(loss_name(section, rows))
    if kind is None:
        # Of what the net or a function of the user's made of the output, the target says most.
        own = ":" in section.loss or section.loss == "net"
        kind = "classes" if own and is_class(target) else "numbers"
    # Targets of probabilities have the axis of the classes, those of class numbers have not.
    axes = len(target.shape) - (kind == "classes" and not is_class(target))
    return Answer(kind=kind, several=axes > 0)
