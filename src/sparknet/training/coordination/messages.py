"""What workers and the driver say to each other: frozen dataclasses, JSON on the wire, nothing unpickled.

A worker sends requests that are answered when the driver has decided (`Register`, `Ready`, `Vote`,
`NextChore`), and two that are answered at once (`Heartbeat`, `Failed`). Sending the same request with the
same serial number again is harmless: it waits for the same answer.
"""

import json
from dataclasses import dataclass, field

from sparknet.config import decode, encode
from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import ClusterError, ConfigError

__all__ = [
    "Aborted",
    "Answer",
    "Checkpoint",
    "ChoreReport",
    "Committed",
    "Done",
    "Evaluate",
    "Exchange",
    "Failed",
    "Heartbeat",
    "NextChore",
    "Proceed",
    "Pulse",
    "Question",
    "Ready",
    "Register",
    "Request",
    "Stop",
    "Superseded",
    "Vote",
    "Wait",
    "Welcome",
    "dump_message",
    "load_message",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """A worker has built its net and opened its data, and wants to take part."""

    slot: int
    attempt: int
    """Rises with every try of a slot: the driver counts them."""
    host: str
    pid: int = 0
    """Process id on that host."""
    device: str = "cpu"
    """What it trains on, for people."""
    note: str = ""
    """What people should know of it besides."""
    serial: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """Local steps are done (or, with 0 steps, the state must come from a peer)."""

    slot: int
    attempt: int
    round: int
    """Round whose weights the local steps started from."""
    steps: int
    samples: int
    cursor: Cursor
    """Where the data goes on after these samples."""
    loss: float = 0.0
    """Mean training loss over the steps."""
    learning_rate: float = 0.0
    step_seconds: float = 0.0
    anchor_hash: str = ""
    """Hash of the weights of `round`: equal on all replicas."""
    serial: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """The all-reduce of (round, epoch) succeeded here, or did not."""

    slot: int
    attempt: int
    round: int
    epoch: int
    ok: bool
    reason: str = ""
    exchange_seconds: float = 0.0
    first_weight: float = 0.0
    """The first number of the weights that the exchange comes to."""
    serial: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoreReport:
    """What a worker found when it did a chore."""

    part: int
    """Which part of the validation rows; -1 for the checkpoint, which went by `put`."""
    rows: int = 0
    sums: dict[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """By name what adds up over all rows, summed over these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextChore:
    """After the commit of `round`: give me something to do for it; and here is what I did before."""

    slot: int
    attempt: int
    round: int
    anchor_hash: str
    report: ChoreReport | None = None
    serial: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """I am alive; answered at once by a `Pulse`."""

    slot: int
    attempt: int
    progress: int = 0
    """Rises with every local step and every answer followed: a thread beats also where the work hangs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """An error ended this attempt; `fatal` when a retry cannot help. Answered at once by a `Pulse`."""

    slot: int
    attempt: int
    host: str
    phase: str
    cause: str
    fatal: bool
    place: str = ""
    """The line of the user's code that is at fault, where one is."""
    trace: str = ""
    """The whole way to it, as Python prints it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """Take the state of `round` and go on from there."""

    round: int
    heal: bool
    """Wait for a peer's state: say `Ready` with 0 steps."""
    steps: int
    """Local steps of the next round."""
    iteration: int
    """Of the run, at which that round begins."""
    iterations: int
    """That the round has: `steps`, unless paces differ."""
    cursor: Cursor
    checkpoint: int | None = None
    """Without `heal`: load this checkpoint, or keep the initial weights when None."""
    chores: bool = False
    """Ask for chores before any step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """The quorum of `round`: all-reduce with these peers now, then vote."""

    round: int
    epoch: int
    """Membership epoch: the group of processes is kept while it stays the same."""
    rank: int
    size: int
    weight: float
    """This worker's share of the samples; all shares sum to 1."""
    heal: bool
    """Take the state from rank 0 first."""
    healing: bool
    """Somebody in the group is being healed, so rank 0 sends its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """Everybody has the average: apply it. The weights are now those of `round`."""

    round: int
    steps: int
    """Local steps of the next round."""
    iteration: int
    """Of the run, at which that round begins."""
    iterations: int
    """That the round has: `steps`, unless paces differ."""
    chores: bool
    """Ask for chores before the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aborted:
    """The round did not commit: keep the local weights and say `Ready` again."""

    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Chore: evaluate the anchor on part `part` of `parts` of the validation rows."""

    round: int
    part: int
    parts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Chore: put the state of `round` into the driver's hands."""

    round: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Proceed:
    """All chores of the round are done: take the next local steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The run is finished: end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """The run was stopped or has failed: end."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Superseded:
    """A newer attempt holds this slot: end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Nothing decided within one call's time: send the same request again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """What a heartbeat brings back."""

    aborted_epoch: int
    """All groups up to this membership epoch are to be dropped; -1 for none."""
    end: bool
    """The run has ended or this attempt is superseded: stop working; the next request says why."""


Question = Register | Ready | Vote | NextChore
"""Answered when the driver has decided."""
Request = Question | Heartbeat | Failed
Answer = (
    Welcome
    | Exchange
    | Committed
    | Aborted
    | Evaluate
    | Checkpoint
    | Proceed
    | Done
    | Stop
    | Superseded
    | Wait
    | Pulse
)

# Made of the two unions alone: a peer can name no other class to be built here.
_KINDS: dict[str, type[Request] | type[Answer]] = {
    kind.__name__: kind for kind in (*Request.__args__, *Answer.__args__)
}


def dump_message(message: Request | Answer) -> bytes:
    """Encode a message as UTF-8 JSON with its kind."""
    return json.dumps({"kind": type(message).__name__, **encode(message)}).encode()


def load_message(body: bytes) -> Request | Answer:
    """Decode what `dump_message` made.

    Raises:
        ClusterError: the bytes are no message of this version.
    """
    try:
        fields = json.loads(body)
        return decode(_KINDS[fields.pop("kind")], fields)
    # Bytes from the network may be anything: no object, no text, brackets nested past the parser's depth.
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, ConfigError) as error:
        raise ClusterError(
            f"a message of {len(body)} bytes is not understood ({error}); driver and workers must run the same "
            "version of sparknet"
        ) from error
