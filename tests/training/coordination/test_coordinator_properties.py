"""The coordinator under everything that can happen, in any order: stateful properties.

The simulated workers obey the protocol as the real loop does. Weights are modelled by what went into them: a
frozen set of the names of local steps, so "lost" and "identical" are plain set statements.
"""

from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import (
    Aborted,
    Answer,
    Checkpoint,
    ChoreReport,
    Committed,
    Done,
    Evaluate,
    Exchange,
    Heartbeat,
    NextChore,
    Proceed,
    Ready,
    Register,
    Stop,
    Superseded,
    Vote,
    Welcome,
)
from sparknet.training.coordination.post_commit import CHECKPOINT
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules

START = Cursor(epoch=0, position=0)
ENDS = (Done, Stop, Superseded)


@dataclass(eq=False)
class Sim:
    """A worker process: real enough for the coordinator."""

    slot: int
    attempt: int
    answer: Answer | None = None
    waiting: bool = True
    hung: bool = False
    ended: bool = False
    round: int = 0
    generation: int = 0
    anchor: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    exchange: Exchange | None = None
    voted: Exchange | None = None
    report: ChoreReport | None = None
    was_lost: bool = False


@dataclass
class Meeting:
    """One all-reduce: complete when everybody in its quorum has come."""

    size: int
    generation: int
    came: dict[int, Sim] = field(default_factory=dict)
    result: frozenset[str] | None = None
    broken: bool = False
    agreed: list[Sim] = field(default_factory=list)
    """Those that voted ok."""
    outcomes: set[str] = field(default_factory=set)


class CoordinatorMachine(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        rounds=st.integers(1, 8),
        every=st.integers(0, 3),
        balanced=st.booleans(),
        undisturbed=st.integers(0, 12),
    )
    def begin(self, slots: int, rounds: int, every: int, balanced: bool, undisturbed: int) -> None:
        self.now = 0.0
        self.rules = Rules(
            slots=slots,
            rounds=rounds,
            plan=RoundPlan(local_steps=4, eval_every=every, checkpoint_every=every),
            balanced=balanced,
            evaluation_parts=slots + 1,
            grace_seconds=3.0,
            start_seconds=5.0,
        )
        self.coordinator = Coordinator(self.rules, now=0.0)
        self.workers: list[Sim] = []
        self.attempts = 0
        self.names = 0
        self.serial = 0
        self.meetings: dict[tuple[int, int], Meeting] = {}
        self.generation = 0
        self.checkpoints: dict[int, frozenset[str]] = {0: frozenset()}
        self.anchors: dict[tuple[int, int], frozenset[str]] = {}
        self.committed: set[tuple[int, int]] = set()
        self.evaluated: dict[tuple[int, int], list[int]] = {}
        self.network_faults = 0
        self.was_finished = False
        self.restart()
        self.all_act(undisturbed)

    # What can happen -----------------------------------------------------------------------------------

    def alive(self) -> list[Sim]:
        return [w for w in self.workers if not w.ended]

    def awake(self) -> list[Sim]:
        return [w for w in self.alive() if not w.hung]

    @rule()
    def restart(self) -> None:
        """Spark starts an attempt of every slot that has none."""
        for slot in range(self.rules.slots):
            if not any(w.slot == slot for w in self.alive()):
                self.spawn(slot)

    @rule(slot=st.integers(0, 3))
    def spawn(self, slot: int) -> None:
        """Spark starts an attempt; an older one of the slot may still be there."""
        if slot < self.rules.slots and sum(w.slot == slot for w in self.alive()) < 2:
            self.attempts += 1
            worker = Sim(slot, self.attempts)
            self.workers.append(worker)
            self.send(worker, Register(slot=slot, attempt=self.attempts, host="here"))

    @precondition(lambda self: self.awake())
    @rule(picks=st.lists(st.integers(0, 3), min_size=1, max_size=6))
    def some_act(self, picks: list[int]) -> None:
        for pick in picks:
            awake = self.awake()
            if awake:
                self.take_a_step(awake[pick % len(awake)])

    @rule(times=st.integers(1, 6))
    def all_act(self, times: int) -> None:
        for _ in range(times):
            for worker in self.awake():
                self.take_a_step(worker)

    def victim(self, pick: int) -> Sim:
        """Somebody to strike, mostly one in the middle of an exchange."""
        exchanging = [worker for worker in self.awake() if worker.exchange]
        victims = exchanging if exchanging and pick else self.awake()
        return victims[pick % len(victims)]

    @precondition(lambda self: self.awake())
    @rule(kind=st.sampled_from(["die", "hang", "network"]), pick=st.integers(0, 3))
    def fault(self, kind: str, pick: int) -> None:
        victim = self.victim(pick)
        if kind == "die":
            victim.ended = True
        elif kind == "hang":
            victim.hung = True
        elif victim.exchange and self.network_faults < 4:
            self.network_faults += 1
            self.vote(victim, ok=False)

    @precondition(lambda self: self.awake())
    @rule(pick=st.integers(0, 3), acts=st.integers(0, 6))
    def pause(self, pick: int, acts: int) -> None:
        """One hangs for longer than the timeout while the others act, and wakes."""
        victim = self.victim(pick)
        victim.hung = True
        self.time_passes(10)
        self.all_act(acts)
        victim.hung = False

    @precondition(lambda self: any(w.hung for w in self.alive()))
    @rule()
    def wake(self) -> None:
        for worker in self.alive():
            worker.hung = False

    @rule(steps=st.integers(1, 12))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.25
            for worker in self.awake():
                beat = Heartbeat(slot=worker.slot, attempt=worker.attempt)
                self.coordinator.receive(beat, self.now)
                if self.coordinator.pulse_for(worker.slot, worker.attempt).end:
                    worker.ended = True
                elif worker.exchange and self.aborted(worker):
                    self.vote(worker, ok=False)
            self.coordinator.tick(self.now)
            self.look()

    @precondition(lambda self: self.rules.rounds == 8)
    @rule(chance=st.integers(0, 30))
    def stop(self, chance: int) -> None:
        if chance == 0:
            self.coordinator.stop("enough")

    # How a worker behaves ------------------------------------------------------------------------------

    def aborted(self, worker: Sim) -> bool:
        pulse = self.coordinator.pulse_for(worker.slot, worker.attempt)
        return worker.exchange is not None and pulse.aborted_epoch >= worker.exchange.epoch

    def send(self, worker: Sim, request: Register | Ready | Vote | NextChore) -> None:
        worker.waiting, worker.answer = True, None
        self.serial += 1
        request = replace(request, serial=self.serial)
        for _ in range(1 + self.serial % 2):  # a request may be repeated
            self.coordinator.receive(request, self.now)
        self.look()

    def vote(self, worker: Sim, *, ok: bool) -> None:
        exchange = worker.exchange
        assert exchange is not None
        worker.exchange = None
        meeting = self.meetings[exchange.round, exchange.epoch]
        meeting.broken |= not ok
        if ok:
            meeting.agreed.append(worker)
        round, epoch = exchange.round, exchange.epoch
        self.send(
            worker, Vote(slot=worker.slot, attempt=worker.attempt, round=round, epoch=epoch, ok=ok, reason="x")
        )
        worker.voted = exchange

    def ready(self, worker: Sim) -> None:
        self.send(
            worker,
            Ready(
                slot=worker.slot,
                attempt=worker.attempt,
                round=worker.round,
                steps=4 if worker.pending else 0,
                samples=40 if worker.pending else 0,
                cursor=START,
                step_seconds=0.1 * (worker.slot + 1),
                anchor_hash=str(sorted(worker.anchor)),
            ),
        )

    def train(self, worker: Sim) -> None:
        self.names += 1
        worker.pending |= {f"steps{self.names}"}
        self.ready(worker)

    def ask_chore(self, worker: Sim, report: ChoreReport | None = None) -> None:
        self.send(
            worker,
            NextChore(
                slot=worker.slot,
                attempt=worker.attempt,
                round=worker.round,
                anchor_hash=str(sorted(worker.anchor)),
                report=report,
            ),
        )

    def take_a_step(self, worker: Sim) -> None:
        if worker.exchange is not None:
            self.go_on_exchanging(worker, worker.exchange)
            return
        if worker.waiting:
            worker.answer = self.coordinator.answer_for(worker.slot, worker.attempt)
            worker.waiting = worker.answer is None
        if not worker.waiting:
            self.follow(worker)

    def go_on_exchanging(self, worker: Sim, exchange: Exchange) -> None:
        meeting = self.meetings[exchange.round, exchange.epoch]
        if meeting.result is not None:
            self.vote(worker, ok=True)
        elif meeting.broken or self.aborted(worker):
            self.vote(worker, ok=False)

    def follow(self, worker: Sim) -> None:
        """Do what the answer says."""
        answer = worker.answer
        match answer:
            case Welcome():
                self.begin_at(worker, answer)
            case Exchange():
                self.meet(worker, answer)
            case Committed():
                self.take_over(worker, answer)
            case Aborted():
                assert worker.voted is not None
                if not worker.was_lost:
                    self.meetings[worker.voted.round, worker.voted.epoch].outcomes.add("aborted")
                self.ready(worker)
            case Evaluate():
                key = (worker.generation, answer.round)
                assert worker.anchor == self.anchors.get(key, worker.anchor), "old weights evaluated"
                report = ChoreReport(part=answer.part, rows=7, sums={"accuracy": (5.0,), "loss": (1.0,)})
                self.ask_chore(worker, report)
            case Checkpoint():
                self.checkpoints[answer.round] = worker.anchor
                self.ask_chore(worker, ChoreReport(part=CHECKPOINT))
            case Proceed():
                self.train(worker)
            case Done() | Stop() | Superseded():
                worker.ended = True
            case _:
                raise AssertionError(answer)

    def begin_at(self, worker: Sim, welcome: Welcome) -> None:
        worker.round, worker.generation, worker.pending = welcome.round, self.generation, frozenset()
        if welcome.heal:
            self.ready(worker)
            return
        worker.anchor = self.checkpoints[welcome.checkpoint or 0]
        self.ask_chore(worker) if welcome.chores else self.train(worker)

    def take_over(self, worker: Sim, committed: Committed) -> None:
        exchange = worker.voted
        assert exchange is not None
        meeting = self.meetings[exchange.round, exchange.epoch]
        meeting.outcomes.add("committed")
        assert meeting.result is not None
        assert worker.pending <= meeting.result, "a survivor's steps were lost"
        worker.anchor, worker.pending, worker.round = meeting.result, frozenset(), committed.round
        worker.generation = meeting.generation
        key = (meeting.generation, committed.round)
        assert self.anchors.setdefault(key, worker.anchor) == worker.anchor, "replicas differ after a commit"
        self.ask_chore(worker) if committed.chores else self.train(worker)

    def meet(self, worker: Sim, exchange: Exchange) -> None:
        new = Meeting(exchange.size, self.generation)
        meeting = self.meetings.setdefault((exchange.round, exchange.epoch), new)
        assert meeting.size == exchange.size, "two quorums of one round and epoch"
        assert exchange.rank not in meeting.came, "two workers of one rank"
        meeting.came[exchange.rank] = worker
        worker.exchange = exchange
        if len(meeting.came) == meeting.size and not meeting.broken:
            anchor = meeting.came[0].anchor
            for other in meeting.came.values():
                assert other.exchange is not None
                if not other.exchange.heal:
                    assert other.anchor == anchor, "replicas differ"
                other.anchor, other.round = anchor, exchange.round
            meeting.result = anchor.union(*(other.pending for other in meeting.came.values()))

    # What must hold ------------------------------------------------------------------------------------

    def look(self) -> None:
        for event in self.coordinator.drain_events():
            match event["event"]:
                case "rollback":
                    self.generation += 1
                case "round":
                    key = (self.generation, event["round"])
                    assert key not in self.committed, "a round committed twice"
                    self.committed.add(key)
                    number = event["round"] - 1
                    # Epochs only rise, while somebody may come late to one that was given up long before.
                    epoch = max(e for r, e in self.meetings if r == number)
                    meeting = self.meetings[number, epoch]
                    for worker in meeting.came.values():
                        assert worker in meeting.agreed or worker.was_lost, "committed without a vote"
                case "worker_lost":
                    for worker in self.workers:
                        worker.was_lost |= worker.attempt == event["attempt"]
                case "evaluation":
                    assert event["rows"] == 7 * self.rules.evaluation_parts, "rows evaluated not exactly once"
                case _:
                    pass
        self.coordinator.drain_lost()

    @invariant()
    def one_answer_for_all(self) -> None:
        for meeting in getattr(self, "meetings", {}).values():
            assert len(meeting.outcomes) <= 1, "live participants got different answers"

    @invariant()
    def ended_stays_ended(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        if self.was_finished:
            assert self.coordinator.status == "finished"
            assert isinstance(self.coordinator.answer_for(0, 10**6), Done)
        self.was_finished = self.coordinator.status == "finished"
        few = any(words in self.coordinator.reason for words in ("registered in", "run.min_workers is"))
        assert self.coordinator.status != "failed" or few

    def teardown(self) -> None:
        """Without further faults everything ends: nobody waits for ever."""
        if not hasattr(self, "coordinator"):
            return
        for worker in self.alive():
            worker.hung = False
        for _ in range(400):
            if not self.coordinator.ended:
                self.restart()
            self.time_passes(1)
            self.all_act(1)
            if self.coordinator.ended and not self.alive():
                break
        assert self.coordinator.ended, "the run never ended"
        assert not self.alive(), "a worker waits for ever"
        self.ended_stays_ended()


TestCoordinatorProperties = CoordinatorMachine.TestCase
TestCoordinatorProperties.settings = settings(
    max_examples=500, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
