"""What all tests need. Its place also puts this directory on the import path, for the modules beside it."""

import signal

import torch
from hypothesis import settings

# OpenMP's threads wait in busy loops: on cores that others use too, two threads are much slower than one.
torch.set_num_threads(1)
# A shell's background job ignores interrupts, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A loaded machine is no fault: an example may take as long as it takes.
settings.register_profile("sparknet", deadline=None)
settings.load_profile("sparknet")
