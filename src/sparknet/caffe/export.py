"""A net with its weights as a file of another format, told by the file's name."""

import logging
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.net_files import written_whole
from sparknet.caffe.weights.caffemodel import LIMIT_BYTES
from sparknet.errors import MissingDependency, NetError

__all__ = ["FORMATS", "export", "export_onnx", "export_safetensors"]

_EXPORTER_LOG = "torch.onnx._internal.exporter._registration"


def export(net: CaffeNet, path: str | os.PathLike[str]) -> None:
    """Write the net to `path` in the format that its name ends in, one of `FORMATS`; whole or not at all.

    Raises:
        NetError: there is no such format, or the file cannot be written.
        MissingDependency: what the format needs is not installed.
    """
    name = os.fspath(path)
    for suffix, write in FORMATS.items():
        if name.endswith(suffix):
            return write(net, path)
    raise NetError(f"{name} tells no format; its name must end in one of {', '.join(FORMATS)}")


def export_safetensors(net: CaffeNet, path: str | os.PathLike[str]) -> None:
    """Write `state_dict()`, each tensor by its name, shared ones under each; the metadata hold `prototxt`, `phase`.

    Raises:
        NetError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in net.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        # the format refuses two names for one memory
        tensors[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    metadata = {"format": "pt", "prototxt": net.description.to_prototxt(), "phase": net.phase}
    with written_whole(path) as draft:
        try:
            save_file(tensors, draft, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error  # of which it has no kind of its own


def export_onnx(net: CaffeNet, path: str | os.PathLike[str]) -> None:
    """Write the net as ONNX, as it behaves in evaluation: blobs in and out keep their names, the batch is free.

    Raises:
        MissingDependency: the extra `onnx` is not installed.
        NetError: a layer fixes the batch size or cannot be expressed, or the file cannot be written.
    """
    if any(find_spec(package) is None for package in ("onnx", "onnxscript")):
        raise MissingDependency("ONNX files need onnx and onnxscript: pip install 'sparknet[onnx]'")
    for step in net.steps:
        if step.layer.onnx_refusal:
            raise NetError(
                f"{net.spec.source}: layer {step.name!r} ({step.description.type}) cannot be written as ONNX: "
                f"{step.layer.onnx_refusal}; use .safetensors or .caffemodel"
            )
    code = [net.spec.place(index) for index, _ in net.spec.python_layers()]
    if code:
        raise NetError(f"{'; '.join(code)}: code cannot be written as ONNX: put layers of other types there")
    # An ONNX file is a protobuf message, with its limit; pieces beside it would not be one file.
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    if size > LIMIT_BYTES:
        raise NetError(f"the net has {size} bytes of weights; an ONNX file has at most {LIMIT_BYTES} (2 GiB)")
    # Exported as it infers: Dropout gone, BatchNorm by its running statistics.
    training = net.training
    net.eval()
    try:
        content = _onnx(net)
    finally:
        net.train(training)
    with written_whole(path) as draft:
        draft.write_bytes(content)


def _onnx(net: CaffeNet) -> bytes:
    # Not 1: torch.export takes a size of 1 for a constant.
    batch = max(2, next(iter(net.shapes[name] for name in net.inputs), (2,))[0])
    examples: dict[str, Tensor] = {}
    for name in net.inputs:
        shape = net.shapes[name]
        examples[name] = torch.zeros(batch, *shape[1:]) if shape[0] in (1, batch) else torch.zeros(shape)
    free = torch.export.Dim("batch")
    moving = tuple({0: free} if example.shape[0] == batch else None for example in examples.values())
    try:
        # A pass first: the exporter names outputs by position, and only a pass tells which blobs come out.
        with _quiet(), torch.no_grad():
            outputs = list(net(examples))
            program: Any = torch.onnx.export(
                _Positional(net, list(examples)),
                tuple(examples.values()),
                dynamo=True,
                verbose=False,
                input_names=list(examples),
                output_names=outputs,
                dynamic_shapes=(moving,),
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:400]
        raise NetError(f"{net.spec.source} cannot be written as ONNX with a free batch size: {reason}") from error
    model = program.model_proto
    for value, free_axis in zip(model.graph.input, moving, strict=True):
        # the exporter makes a number of what turns out to be one, and says nothing
        if free_axis and not value.type.tensor_type.shape.dim[0].dim_param:
            raise NetError(
                f"{net.spec.source} cannot be written as ONNX with a free batch size: a layer fixes the first axis "
                f"of {value.name!r} at {batch}; a Reshape can copy it with dim: 0"
            )
    return model.SerializeToString()


class _Positional(nn.Module):
    """The net with its inputs and outputs in order instead of by name."""

    def __init__(self, net: CaffeNet, names: Sequence[str]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(dict(zip(self.names, inputs, strict=True))).values())


@contextmanager
def _quiet() -> Generator[None]:
    """Keep to itself what the exporter says about itself: torchvision that we do not use, its own deprecations."""
    log = logging.getLogger(_EXPORTER_LOG)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _export_weights(net: CaffeNet, path: str | os.PathLike[str]) -> None:
    net.save_weights(path)


def _export_prototxt(net: CaffeNet, path: str | os.PathLike[str]) -> None:
    with written_whole(path) as draft:
        Path(draft).write_text(net.description.to_prototxt(), encoding="utf-8")


FORMATS: dict[str, Callable[[CaffeNet, str | os.PathLike[str]], None]] = {
    ".safetensors": export_safetensors,
    ".onnx": export_onnx,
    ".caffemodel": _export_weights,
    ".h5": _export_weights,
    ".prototxt": _export_prototxt,
}
"""What writes a file, by the end of its name."""
