"""A stage for the coordinator: workers that do what a test tells them, and time that passes when it is told to."""

from collections.abc import Iterable
from dataclasses import fields, replace

from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import (
    Answer,
    ChoreReport,
    Committed,
    Exchange,
    Failed,
    Heartbeat,
    NextChore,
    Pulse,
    Ready,
    Register,
    Vote,
    Welcome,
)
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules, RunProgress

RULES = Rules(
    slots=2,
    rounds=10,
    plan=RoundPlan(local_steps=4),
    heartbeat_timeout_seconds=2.0,
    grace_seconds=10.0,
    start_seconds=60.0,
)
PLANNED = {field.name for field in fields(RoundPlan)}


class Play:
    """A coordinator with its clock at 0; keyword arguments are `Rules` and a `RoundPlan`.

    Attributes:
        told: all event records so far.
    """

    def __init__(self, *, start: RunProgress | None = None, checkpoint: int | None = None, **rules) -> None:
        self.now = 0.0
        planned = {key: rules.pop(key) for key in PLANNED & rules.keys()}
        rules["plan"] = replace(RULES.plan, **planned)
        self.coordinator = Coordinator(replace(RULES, **rules), now=0.0, start=start, checkpoint=checkpoint)
        self.told: list[dict[str, object]] = []
        self._serial = 0
        self._rounds: dict[int, int] = {}

    # What workers say; each gives the answer so far -----------------------------------------------------

    def register(self, slot: int, attempt: int = 1) -> Answer | None:
        return self._say(Register(slot=slot, attempt=attempt, host=f"host{slot}"))

    def ready(
        self,
        slot: int,
        attempt: int = 1,
        *,
        steps: int = 4,
        samples: int | None = None,
        seconds: float = 1.0,
        **more,
    ) -> Answer | None:
        samples = 10 * steps if samples is None else samples
        cursor = Cursor(epoch=0, position=1000 * slot + samples)
        round = self._rounds.get(slot, self.coordinator.round)
        message = Ready(
            slot=slot,
            attempt=attempt,
            round=round,
            steps=steps,
            samples=samples,
            cursor=cursor,
            step_seconds=seconds,
            **more,
        )
        return self._say(message)

    def vote(
        self, slot: int, attempt: int = 1, *, of: Exchange, ok: bool = True, reason: str = ""
    ) -> Answer | None:
        return self._say(
            Vote(
                slot=slot,
                attempt=attempt,
                round=of.round,
                epoch=of.epoch,
                ok=ok,
                reason=reason,
                exchange_seconds=0.1,
                first_weight=0.5 + slot,
            )
        )

    def chore(
        self, slot: int, attempt: int = 1, *, report: ChoreReport | None = None, anchor_hash: str = "h", round=None
    ) -> Answer | None:
        round = self.coordinator.round if round is None else round
        return self._say(NextChore(slot=slot, attempt=attempt, round=round, anchor_hash=anchor_hash, report=report))

    def fails(self, slot: int, attempt: int = 1, *, fatal: bool, cause: str = "it broke", place: str = "") -> None:
        message = Failed(
            slot=slot,
            attempt=attempt,
            host=f"host{slot}",
            phase="taking steps",
            cause=cause,
            fatal=fatal,
            place=place,
            trace=f"Traceback of {place}" if place else "",
        )
        self.coordinator.receive(message, self.now)
        self.look()

    def _say(self, message) -> Answer | None:
        self._serial += 1
        self.coordinator.receive(replace(message, serial=self._serial), self.now)
        self.look()
        return self.answer(message.slot, message.attempt)

    # What they hear ---------------------------------------------------------------------------------------

    def answer(self, slot: int, attempt: int = 1) -> Answer | None:
        return self.coordinator.answer_for(slot, attempt)

    def exchange(self, slot: int, attempt: int = 1) -> Exchange:
        answer = self.answer(slot, attempt)
        assert isinstance(answer, Exchange), answer
        return answer

    def pulse(self, slot: int, attempt: int = 1) -> Pulse:
        return self.coordinator.pulse_for(slot, attempt)

    # Time and events --------------------------------------------------------------------------------------

    def passes(self, seconds: float, *, alive: Iterable[int | tuple[int, int]] = ()) -> None:
        """Let time pass in small ticks while the slots (or (slot, attempt)) of `alive` keep beating."""
        beating = [(who, 1) if isinstance(who, int) else who for who in alive]
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            for slot, attempt in beating:
                self.coordinator.receive(Heartbeat(slot=slot, attempt=attempt), self.now)
            self.coordinator.tick(self.now)
            self.look()

    def look(self) -> None:
        self.told += self.coordinator.drain_events()

    def events(self, kind: str) -> list[dict[str, object]]:
        return [event for event in self.told if event["event"] == kind]

    # Whole acts -------------------------------------------------------------------------------------------

    def begin(self, *slots: int) -> None:
        """All these slots register; the run starts if they are enough."""
        for slot in slots:
            self.register(slot)
        for slot in slots:
            assert isinstance(self.answer(slot), Welcome)

    def quorum(self, *slots: int | tuple[int, int], **ready) -> list[Exchange]:
        """All say ready, and all are called to the exchange."""
        who = [(slot, 1) if isinstance(slot, int) else slot for slot in slots]
        for slot, attempt in who:
            self.ready(slot, attempt, **ready)
        return [self.exchange(slot, attempt) for slot, attempt in who]

    def commit(self, *slots: int | tuple[int, int], **ready) -> None:
        """One whole round of these slots."""
        who = [(slot, 1) if isinstance(slot, int) else slot for slot in slots]
        exchanges = self.quorum(*slots, **ready)
        for (slot, attempt), exchange in zip(who, exchanges, strict=True):
            self.vote(slot, attempt, of=exchange)
        for slot, attempt in who:
            assert isinstance(self.answer(slot, attempt), Committed), self.answer(slot, attempt)

    def do_chores(self, *slots: int, rows: int = 50) -> list[Answer]:
        """These slots do all chores of the round, in turn; what was handed out, in order."""
        done: list[Answer] = []
        for slot in slots:
            self.chore(slot)
        while True:
            busy = [slot for slot in slots if self.is_chore(slot)]
            if not busy:
                return done
            chore = self.answer(busy[0])
            done.append(chore)
            self.chore(busy[0], report=report_on(chore, rows=rows))

    def is_chore(self, slot: int) -> bool:
        return type(self.answer(slot)).__name__ in ("Evaluate", "Checkpoint")


def report_on(chore: Answer, *, rows: int = 50) -> ChoreReport:
    """What a worker reports of a chore: 9 of 10 rows are right."""
    part = getattr(chore, "part", -1)
    if part < 0:
        return ChoreReport(part=-1)
    return ChoreReport(
        part=part, rows=rows, sums={"accuracy": (rows * 9 // 10,), "top5": (rows,), "loss": (0.5 * rows,)}
    )


def live_slots(play):
    """Slots whose worker is alive to the coordinator."""
    return sorted(member.slot for member in play.coordinator._members.values() if member.alive)
