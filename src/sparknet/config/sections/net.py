"""Which network."""

from dataclasses import dataclass, field
from typing import Any

from sparknet.config.rules import require, shortened

__all__ = ["Net"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """Which module to train: `name` or `prototxt`."""

    name: str = ""
    """An entry of the zoo (`lenet`), or `package.module:callable`: a class or function returning an `nn.Module` or
    a `NetSpec`."""
    prototxt: str = ""
    """A Caffe net: path of a prototxt file, or its text."""
    weights: str = ""
    """Weights to start from: safetensors, `.pt` (tensors alone, nothing is unpickled) or caffemodel files,
    separated by commas. Of a caffemodel the layers of the same names."""
    weights_map: dict[str, str] = field(default_factory=dict[str, str])
    """Which weights are taken, by the beginnings of their names, and what those become in the net:
    `{ "model.encoder." = "backbone." }`. Not given: all, by their own names."""
    weights_strict: bool = True
    """Weights that are missing in the files, or left over there, are an error; if not, they are listed. Of weights
    that `weights_map` picks, only those left over are."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by patterns of their names: `["backbone.*"]`."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the callable."""
    allow_python_layers: bool = False
    """A Caffe net's layers of type Python may run their code, with your rights, here and at every worker's. A run's
    own files do not allow it: whoever resumes or tests it says so again, with `--allow-python-layers`."""
    python_path: tuple[str, ...] = ()
    """Directories in which, behind PYTHONPATH, the modules of such layers are looked for, the same at every worker;
    not given: the directory that the run is started in, then that of the net's file."""
    compile: bool = False
    """Compile the net's forward pass with `torch.compile`; where that fails, a line says so and it runs
    as it is."""
    channels_last: bool = False
    """Keep images in channels-last memory order, which convolutions on CPUs often prefer."""

    def __post_init__(self) -> None:
        require(
            bool(self.name) != bool(self.prototxt),
            "net.name and net.prototxt",
            (self.name, shortened(self.prototxt)),
            "exactly one must be given: a zoo entry or callable, as in net.name='lenet', or a Caffe file",
        )
        # Refused rather than passed over: who sets them expects an effect.
        require(
            not self.weights_map or bool(self.weights),
            "net.weights_map",
            self.weights_map,
            "it says which weights of a file are taken, and no file is given: set net.weights",
        )
        require(
            not self.arguments or not self.prototxt,
            "net.arguments",
            self.arguments,
            "a prototxt takes none: leave them out",
        )
