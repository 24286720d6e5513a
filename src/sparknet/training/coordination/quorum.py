"""One try of a round: who takes part, what they voted, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Literal

from sparknet.training.coordination.messages import Answer, Exchange, Question, Ready, Vote

__all__ = ["Member", "Quorum", "Verdict", "balanced_steps", "grace_ends"]

Phase = Literal["waiting", "working", "ready", "exchanging", "chores"]


# eq=False: two attempts of a slot are two members, whatever their fields say.
@dataclass(eq=False, slots=True)
class Member:
    """One attempt of one slot, as the coordinator sees it."""

    slot: int
    attempt: int
    host: str
    pid: int
    device: str
    last_heard: float
    alive: bool = True
    """Heard within the heartbeat timeout, and not replaced by a newer attempt."""
    progress: int = -1
    progress_since: float = 0.0
    stuck: bool = False
    """It beats but does not work any more: it is never taken back."""
    phase: Phase = "waiting"
    state: tuple[int, int] | None = None
    """(generation, round) of the weights it holds; None before it has any."""
    request: Question | None = None
    answer: Answer | None = None
    ready: Ready | None = None
    """What it said last when its local steps were done."""
    ready_since: float = 0.0
    seconds_per_step: float | None = None

    @property
    def name(self) -> tuple[int, int]:
        """(slot, attempt)."""
        return (self.slot, self.attempt)

    def differs(self, round: int, anchor_hash: str, *, other: str) -> str:
        """What to say where it holds weights of this hash and another worker others."""
        return (
            f"after round {round} worker {self.slot} on {self.host} holds weights {anchor_hash} and {other}; they "
            "must be identical: memory or network corrupts data there, take that machine out and resume the run"
        )


def grace_ends(live: Sequence[Member], ready: Sequence[Member], grace_seconds: float) -> float:
    """When those who are ready stop waiting: the grace period after the median live member was."""
    times = sorted(member.ready_since for member in ready)
    # Of all that live, not of the ready ones: a few quick workers must not leave the majority behind.
    median = (len(live) - 1) // 2
    return times[median] + grace_seconds if median < len(times) else float("inf")


def balanced_steps(local_steps: int, member: Member, live: Sequence[Member]) -> int:
    """As many steps as a member takes in the median live member's time for `local_steps`: 1 to 8 times as many."""
    paces = [one.seconds_per_step for one in live if one.seconds_per_step]
    if not paces or not member.seconds_per_step:
        return local_steps
    steps = round(local_steps * median_low(paces) / member.seconds_per_step)
    return min(max(1, steps), 8 * local_steps)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a quorum ended."""

    commits: bool
    reason: str = ""
    """Why it does not commit."""


@dataclass(slots=True)
class Quorum:
    """The participants of one try of a round, in rank order; rank 0 holds the round's weights."""

    round: int
    epoch: int
    members: list[Member]
    healed: list[Member]
    """Those of them that take the state from rank 0."""
    wait_seconds: float
    """How long the mean of the others had waited when the quorum was decided."""
    votes: dict[int, Vote] = field(default_factory=dict[int, Vote])

    def readies(self) -> list[Ready]:
        """What each participant brought, in rank order."""
        return [member.ready for member in self.members if member.ready is not None]

    def hand_out(self) -> None:
        """Give every participant its place and its weight in the exchange."""
        readies = self.readies()
        # A newcomer brought no samples, so that it weighs 0 and takes part to receive the others' average.
        total = sum(ready.samples for ready in readies)
        for rank, (member, ready) in enumerate(zip(self.members, readies, strict=True)):
            member.phase = "exchanging"
            member.answer = Exchange(
                round=self.round,
                epoch=self.epoch,
                rank=rank,
                size=len(self.members),
                weight=ready.samples / total if total else 1 / len(self.members),
                heal=member in self.healed,
                healing=bool(self.healed),
            )

    def voters(self) -> list[Member]:
        """Participants that voted, also those that fell silent since: they wait for the outcome when they wake."""
        return [member for member in self.members if member.slot in self.votes]

    def verdict(self) -> Verdict | None:
        """Commit when all that are alive voted ok; abort when one did not, or cannot any more; else None."""
        refusals = [vote for vote in self.votes.values() if not vote.ok]
        if refusals:
            # At once, without the other votes: who still waits in the exchange waits for the one that left it.
            return Verdict(False, f"worker {refusals[0].slot}: {refusals[0].reason}")
        live = [member for member in self.members if member.alive]
        silent = [member for member in self.members if member.slot not in self.votes]
        dead = ", ".join(str(member.slot) for member in silent if not member.alive)
        if not live or (dead and any(member.alive for member in silent)):
            # Those who wait would wait for the dead; the heartbeat tells them to drop their group.
            return Verdict(False, f"worker {dead} died during the exchange")
        # Dead ones that did not vote prevent nothing: the average with their steps is there on all that live.
        return None if any(member.alive for member in silent) else Verdict(True)

    def never_through(self, tries: int, reason: str) -> str:
        """What to say of a round that has been tried so often."""
        hosts = ", ".join(f"{member.slot} on {member.host}" for member in self.members)
        return (
            f"round {self.round} was tried {tries} times and never got through between workers {hosts}; "
            f"last reason: {reason}; open the ports between these hosts (sparknet doctor tries the routes)"
        )

    def took_part(self) -> int:
        """How many brought steps of their own."""
        return sum(ready.steps > 0 for ready in self.readies())

    def exchange_seconds(self) -> float:
        """The slowest participant's time for the exchange."""
        return max(vote.exchange_seconds for vote in self.votes.values())

    def loss(self) -> float:
        """Mean training loss over the samples of the round."""
        readies = self.readies()
        samples = sum(ready.samples for ready in readies)
        return sum(ready.loss * ready.samples for ready in readies) / max(1, samples)

    def record(self, seconds: float) -> dict[str, object]:
        """The fields of a `round` event, for a round that took so many seconds."""
        readies = self.readies()
        # A newcomer made no steps, and would pull the mean time of a step towards 0.
        worked = [ready for ready in readies if ready.steps]
        samples = sum(ready.samples for ready in readies)
        step_seconds = sum(ready.step_seconds for ready in worked) / max(1, len(worked))
        # A round of a test may take no time at all by the clock, hence the smallest divisors below.
        sync_seconds = self.wait_seconds + self.exchange_seconds()
        return {
            "slots": [ready.slot for ready in readies],
            "steps": sum(ready.steps for ready in readies),
            "samples": samples,
            "loss": self.loss(),
            "learning_rate": max((ready.learning_rate for ready in worked), default=0.0),
            "images_per_second": samples / max(1e-9, seconds),
            "step_seconds": step_seconds,
            "wait_seconds": self.wait_seconds,
            "exchange_seconds": self.exchange_seconds(),
            "sync_share": sync_seconds / max(1e-9, step_seconds + sync_seconds),
            # All have the same, unless each trains by itself.
            "weight": self.votes[min(self.votes)].first_weight,
        }
