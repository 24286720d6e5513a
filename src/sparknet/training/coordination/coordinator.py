"""The authority of a run: a pure state machine, without threads, sockets or clocks.

Requests go in with the time at which they came (`receive`), time itself goes in (`tick`), answers are looked up
(`answer_for`), and what happened comes out as event records (`drain_events`). The driver service puts a lock,
a socket and a clock around it.

A round runs so: every live member says `Ready`; the quorum gets an `Exchange`; all of them vote; when every live
participant voted ok the round commits, otherwise it is aborted and all say `Ready` again with the steps they
have already made. A commit may bring chores (evaluation parts, a checkpoint), which come before the next quorum.
"""

from collections import Counter
from dataclasses import replace
from typing import Literal

from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import ConfigError
from sparknet.training.coordination.best_round import Judge
from sparknet.training.coordination.messages import (
    Aborted,
    Answer,
    Committed,
    Done,
    Failed,
    Heartbeat,
    NextChore,
    Proceed,
    Pulse,
    Question,
    Ready,
    Register,
    Request,
    Stop,
    Superseded,
    Vote,
    Welcome,
)
from sparknet.training.coordination.post_commit import Chores, Conclude, Evaluation, means
from sparknet.training.coordination.quorum import Member, Quorum, balanced_steps, grace_ends
from sparknet.training.coordination.rules import Rules, RunProgress
from sparknet.training.coordination.shortage import Shortage
from sparknet.training.coordination.worker_errors import WorkerErrors

__all__ = ["Coordinator"]

MAX_ABORTS = 8
"""Aborts in a row, without anybody dying in between, after which the network is at fault and the run fails."""


class Coordinator:
    """Decides who takes part in which round, and whether it counts.

    Args:
        rules: settings that never change during the run.
        now: the time, in seconds of any clock that only rises; the same clock everywhere.
        start: where the run begins; round 0, or what a checkpoint recorded.
        checkpoint: the round of the newest good checkpoint, None when there is none.
        conclude: makes measures of the sums of an evaluation; not given: they are means over the rows.

    Attributes:
        status: `starting` until the workers are there, then `running`, then one of three ends.
        reason: why it was stopped or failed.
        culprit: the worker whose error failed the run, where it was one.
        errors: those of workers.
        round, iteration: rounds committed so far, and the iterations of these.
        samples: samples in them.
        rounds_by_workers: by how many workers took part, in how many rounds.
        cursors: per slot, where its data goes on.
        failures: workers lost so far.
        took_part: per slot, its newest attempt that took part in a committed round.
        sync_seconds: seconds that the mean worker spent waiting and exchanging.
        anchor_hash: hash of the newest weights that all replicas confirmed.
        evaluation: the newest validation result.
        loss: mean training loss of the last round that was committed; None before.
        judge: knows the best one, and whether the run is to end.
        began_training: when the first round began.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        now: float,
        start: RunProgress | None = None,
        checkpoint: int | None = None,
        conclude: Conclude = means,
    ) -> None:
        self.rules = rules
        self.status: Literal["starting", "running", "finished", "stopped", "failed"] = "starting"
        self.reason = ""
        self._start = start = start or RunProgress()
        self.round = start.round
        self.iteration = start.iteration
        self.samples = start.samples
        self.rounds_by_workers = Counter(start.rounds_by_workers)
        self.cursors = dict(start.cursors)
        self.failures = 0
        self.took_part: dict[int, int] = {}
        self.sync_seconds = 0.0
        self.anchor_hash = ""
        self.culprit: Failed | None = None
        self.errors = WorkerErrors()
        self.began_training = now
        self.evaluation: Evaluation | None = None
        self.loss: float | None = None
        self.judge = Judge(rules.aim, start.best)
        self._conclude = conclude
        self._fallback = start
        self._checkpoint = checkpoint
        self._generation = 0
        self._members: dict[int, Member] = {}
        self._quorum: Quorum | None = None
        self._epoch = -1
        self._group: list[tuple[int, int]] = []
        self._aborted_epoch = -1
        self._aborts_in_a_row = 0
        self._settled: dict[tuple[int, int], bool] = {}
        self._confirmed: tuple[tuple[int, int], str, int] | None = None
        self._chores = Chores()
        self._events: list[dict[str, object]] = []
        self._begun = now
        self._last_tick = now
        self._round_began = now
        self._lost: list[tuple[int, int]] = []
        self._shortage = Shortage(rules)

    # What the service asks -------------------------------------------------------------------------------

    def receive(self, message: Request, now: float) -> None:
        """Take a worker's request; `answer_for` then tells whether it is decided."""
        if isinstance(message, Failed):
            self._failed(message, now)
            return
        if isinstance(message, Register):
            self._register(message, now)
        member = self._members.get(message.slot)
        if member is None or member.attempt != message.attempt or member.stuck:
            return  # answer_for says Superseded
        self._heard(member, now)
        if isinstance(message, Heartbeat):
            if message.progress != member.progress:
                member.progress, member.progress_since = message.progress, now
            return
        # The serial number tells a repetition (after `Wait`) from a `Ready` after a fall-back, equal in all else.
        if message == member.request:
            return
        if member.request is not None and message.serial < member.request.serial:
            return  # a repetition that came late: it has been answered
        # The old answer goes first: `answer_for` would give it as the answer to this request.
        member.request, member.answer, member.progress_since = message, None, now
        self._take(member, message, now)
        self._advance(now)

    def _take(self, member: Member, question: Question, now: float) -> None:
        match question:
            case Register():
                self._welcome(member)
            case Ready():
                self._ready(member, question, now)
            case Vote():
                self._vote(member, question)
            case NextChore():
                self._chore(member, question, now)

    def answer_for(self, slot: int, attempt: int) -> Answer | None:
        """The answer to the last request of (slot, attempt), or None while it is not decided."""
        member = self._members.get(slot)
        if self.status in ("stopped", "failed"):
            return Stop(reason=self.reason)
        if self.status == "finished":
            # The last commit is still owed to those whose vote made it; then they hear that it is over.
            voted = member is not None and member.attempt == attempt and isinstance(member.answer, Committed)
            return member.answer if voted and member is not None else Done()
        if member is None or member.attempt != attempt or member.stuck:
            return Superseded()
        return member.answer

    def pulse_for(self, slot: int, attempt: int) -> Pulse:
        """The answer to a heartbeat."""
        member = self._members.get(slot)
        # The beats begin before `Register` has come: an attempt that is not known yet must not be told to end.
        superseded = member is not None and (member.attempt > attempt or member.stuck)
        return Pulse(aborted_epoch=self._aborted_epoch, end=superseded or self.ended)

    def tick(self, now: float) -> None:
        """Let time pass: deaths by silence, hangs, the start deadline, the grace period."""
        # A driver that was itself held up (suspended, say) could hear nobody in that time: without this, the
        # first tick after it would find every worker dead at once.
        held_up = now - self._last_tick - self.rules.heartbeat_timeout_seconds / 2
        self._last_tick = now
        if held_up > 0:
            for member in self._members.values():
                member.last_heard = min(now, member.last_heard + held_up)
                member.progress_since = min(now, member.progress_since + held_up)
        for member in self.live():
            self._miss(member, now)
        self._advance(now)

    def stop(self, reason: str) -> None:
        """End the run for an outside reason; a run that has ended stays as it ended."""
        if not self.ended:
            self.status, self.reason = "stopped", reason

    def fail(self, reason: str) -> None:
        """End the run as failed; a run that has ended stays as it ended."""
        if not self.ended:
            self.status, self.reason = "failed", reason

    @property
    def ended(self) -> bool:
        """Whether the run is over, however it ended."""
        return self.status in ("finished", "stopped", "failed")

    @property
    def progress(self) -> RunProgress:
        """What a checkpoint of the current round must record."""
        cursors = dict(self.cursors)
        done = replace(self._start, round=self.round, iteration=self.iteration, samples=self.samples)
        seen = dict(self.rounds_by_workers)
        return replace(done, cursors=cursors, best=self.judge.best, rounds_by_workers=seen)

    def drain_events(self) -> list[dict[str, object]]:
        """The event records since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def drain_lost(self) -> list[tuple[int, int]]:
        """(slot, attempt) of those that fell silent or were replaced since the last call: their tasks may hang."""
        lost, self._lost = self._lost, []
        return lost

    # Members ---------------------------------------------------------------------------------------------

    def _register(self, message: Register, now: float) -> None:
        if not 0 <= message.slot < self.rules.slots:
            self.fail(f"a worker came with slot {message.slot}; slots are 0 to {self.rules.slots - 1}")
            return
        old = self._members.get(message.slot)
        # The driver's numbers only rise: the higher one is the newer attempt, whichever of the two comes first.
        if old is not None and old.attempt >= message.attempt:
            return
        if old is not None and old.alive:
            self._lose(old, f"replaced by attempt {message.attempt}")
        if message.note:
            self._emit("note", level="warning", message=f"worker {message.slot} on {message.host}: {message.note}")
        # A new object: a quorum that still has the old one must see that die, and not revive with the new attempt.
        self._members[message.slot] = Member(
            message.slot, message.attempt, message.host, message.pid, message.device, now
        )

    def _heard(self, member: Member, now: float) -> None:
        member.last_heard = now
        if not member.alive:
            member.alive = True
            self._emit("worker_returned", **self._who(member))
            if self.status == "running" and member.phase == "waiting":
                self._welcome(member)  # it was silent when the run began without it

    def _miss(self, member: Member, now: float) -> None:
        """Give up a member that is silent, or that beats but has not got on with what it was told to do."""
        if member.answer is None:
            member.progress_since = now  # it waits for us
        silent, idle = now - member.last_heard, now - member.progress_since
        if silent > self.rules.heartbeat_timeout_seconds:
            self._lose(member, f"silent for {silent:.1f} s")
        elif idle > self.rules.hang_seconds:
            member.stuck = True
            self._lose(member, f"no progress for {idle:.0f} s, though its heartbeat goes on")

    def _lose(self, member: Member, reason: str, *, error: Failed | None = None) -> None:
        member.alive = False
        self.failures += 1
        self._aborts_in_a_row = 0  # a death explains the aborts before it: the network may be sound
        # Of one that has told an error the job ends by itself.
        if error is None:
            self._lost.append(member.name)
        self._chores.give_back(member.slot)
        trace = {"trace": error.trace} if error is not None and error.trace else {}
        self._emit("worker_lost", **self._who(member), reason=reason, **trace)

    def _failed(self, message: Failed, now: float) -> None:
        member = self._members.get(message.slot)
        if member is not None and member.attempt > message.attempt:
            return
        if self.errors.add(message):
            self.culprit = self.culprit or message
            where = f"worker {message.slot} on {message.host} failed while {message.phase}"
            self.fail(f"{where}: {message.cause}")
        elif member is not None and member.attempt == message.attempt and member.alive:
            self._lose(member, f"error while {message.phase}: {message.cause}", error=message)
        self._advance(now)

    def _welcome(self, member: Member) -> None:
        if self.status == "running":
            member.phase = "working"
            member.answer = self._welcome_at_current_round(member, heal=True)
            self._emit("worker_joined", **self._who(member), pid=member.pid, device=member.device, heal=True)

    def _welcome_at_current_round(self, member: Member, *, heal: bool) -> Welcome:
        return Welcome(
            round=self.round,
            heal=heal,
            checkpoint=None if heal else self._checkpoint,
            steps=self._planned,
            iteration=self.iteration,
            iterations=self._planned,
            # Where the slot's last commit ended: rows of an open round that was lost are read again.
            cursor=self.cursors.get(member.slot, Cursor(epoch=0, position=0)),
            chores=bool(self._chores) and not heal,
        )

    def _holds_current_state(self, member: Member) -> bool:
        # The generation too: after a rollback the same round number comes again, with other weights.
        return member.state == (self._generation, self.round)

    def live(self) -> list[Member]:
        """Those that are alive, by slot."""
        return [member for _, member in sorted(self._members.items()) if member.alive]

    def _who(self, member: Member) -> dict[str, object]:
        return {"slot": member.slot, "attempt": member.attempt, "host": member.host, "round": self.round}

    # The way forward -------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Take every step that is possible now; called after every change."""
        # In this order: a commit makes chores, which hold the next quorum back, so that all see one state.
        if self.status == "starting":
            self._try_start(now)
        if self.status == "running" and self._quorum is not None:
            self._try_settle(self._quorum, now)
        if self.status == "running":
            self._hand_out_chores(now)
        if self.status == "running" and self._quorum is None:
            self._try_quorum(now)

    def _try_start(self, now: float) -> None:
        live = self.live()
        rules = self.rules
        if len(live) < rules.slots and now < self._begun + rules.start_seconds:
            return
        if len(live) < rules.min_workers:
            self.fail(
                f"{len(live)} of {rules.slots} workers registered in {rules.start_seconds:g} s and at least "
                f"{rules.min_workers} must: give Spark more cores, or lower run.workers or run.min_workers, or "
                "raise cluster.start_seconds"
            )
            return
        self.status, self.began_training = "running", now
        self._begin_generation(live, now)
        for member in live:
            self._emit("worker_joined", **self._who(member), pid=member.pid, device=member.device, heal=False)

    def _begin_generation(self, members: list[Member], now: float) -> None:
        """Let `members` begin from the checkpoint (or the initial weights) at the current round."""
        self._chores = Chores()
        # A run may resume after its last commit, with no round left to train and only its last chores to do.
        if self._is_last or (self.rules.evaluate_first and not self.round):
            self._add_chores()
        if self._is_last and not self._chores:
            self.status = "finished"
            return
        self._round_began = now
        for member in members:
            # Counted as held before it is loaded: its next request comes after that, or never.
            member.state = (self._generation, self.round)
            member.phase = "working"
            member.answer = self._welcome_at_current_round(member, heal=False)

    def _ready(self, member: Member, message: Ready, now: float) -> None:
        member.phase, member.ready, member.ready_since = "ready", message, now
        if message.steps:
            member.seconds_per_step = message.step_seconds / message.steps
        if message.round != self.round or not message.steps:
            # It has no steps from this round's weights: heal it, or rounds would commit that nobody has trained.
            member.state = None
        self._check_hash(member, message.anchor_hash)

    def _check_hash(self, member: Member, anchor_hash: str) -> None:
        if not (self._holds_current_state(member) and anchor_hash and self.rules.replicas_agree):
            return
        now_held = (self._generation, self.round)
        if self._confirmed is None or self._confirmed[0] != now_held:
            self._confirmed = (now_held, anchor_hash, member.slot)
        _, known, slot = self._confirmed
        self.anchor_hash = known
        if known != anchor_hash:
            self.fail(member.differs(self.round, anchor_hash, other=f"worker {slot} holds {known}"))

    def _try_quorum(self, now: float) -> None:
        live = self.live()
        ready = [member for member in live if member.phase == "ready"]
        current = [member for member in live if self._holds_current_state(member)]
        if self._is_short_of(live, now) or not ready or (self._chores and current):
            return
        if not current:
            self._fall_back(ready, now)
            return
        ranks = [member for member in ready if member in current]
        rules = self.rules
        few = not ranks or len(ready) < rules.min_workers
        if len(ready) < len(live) and (few or now < grace_ends(live, ready, rules.grace_seconds)):
            return
        if ranks:
            # Rank 0 must hold the state that others take. The other ranks stay as they were, so that a group
            # outlives the healing of its newest member.
            before = {name: rank for rank, name in enumerate(self._group)}
            ready.sort(key=lambda m: (m not in ranks, before.get(m.name, len(before)), m.slot))
            self._form_quorum(ready, now)

    def _is_short_of(self, live: list[Member], now: float) -> bool:
        """Whether too few are alive to go on."""
        short = self._shortage.look(len(live), now)
        if short is not None and short.note:
            self._emit("note", level="warning", message=short.note)
        if short is not None and short.failure:
            self.fail(short.failure)
        return short is not None

    def _fall_back(self, ready: list[Member], now: float) -> None:
        """Nobody alive holds the current weights: begin again from the last checkpoint."""
        before, self._generation = self.round, self._generation + 1
        self._settled.clear()  # what was committed then is not part of this generation,
        self._group = []  # nor is a vote of then one of now: the next quorum gets a new epoch
        back = self._fallback
        self.round, self.iteration, self.samples = back.round, back.iteration, back.samples
        self.rounds_by_workers = Counter(back.rounds_by_workers)
        self.cursors = dict(back.cursors)
        self.judge = Judge(self.rules.aim, self._fallback.best)
        self._emit(
            "rollback",
            from_round=before,
            to_round=self.round,
            reason="no live worker holds the weights of the current round",
        )
        self._begin_generation(ready, now)

    def _form_quorum(self, members: list[Member], now: float) -> None:
        group = [member.name for member in members]
        # Nobody meets twice in an aborted epoch: its members dropped their sockets, each at its own moment.
        changed = group != self._group or self._aborted_epoch == self._epoch
        if changed:
            self._epoch, self._group = self._epoch + 1, group
        current = [member for member in members if self._holds_current_state(member)]
        healed = [member for member in members if member not in current]
        wait = sum(now - member.ready_since for member in current) / len(current)
        self._quorum = Quorum(self.round, self._epoch, members, healed, wait)
        self._quorum.hand_out()
        if changed or healed:
            self._emit(
                "quorum",
                round=self.round,
                epoch=self._epoch,
                slots=[member.slot for member in members],
                healed=[member.slot for member in healed],
            )

    # Votes -----------------------------------------------------------------------------------------------

    def _vote(self, member: Member, vote: Vote) -> None:
        quorum = self._quorum
        member.phase = "working"
        this_one = quorum is not None and (quorum.round, quorum.epoch) == (vote.round, vote.epoch)
        # `in` goes by identity: a newer attempt of the slot took no part in this exchange.
        if quorum is not None and this_one and member in quorum.members:
            quorum.votes[member.slot] = vote
            member.phase = "exchanging"
        elif vote.ok and self._settled.get((vote.round, vote.epoch)):
            # It was counted dead, but it has the same average that the others committed.
            member.state = (self._generation, vote.round + 1)
            member.answer = self._committed(member, vote.round + 1)
        elif self._settled.get((vote.round, vote.epoch)):
            # The others committed an average that has its steps in it: it must not bring them again.
            member.answer = self._welcome_at_current_round(member, heal=True)
        else:
            member.answer = Aborted(epoch=vote.epoch, reason="the round was settled without this vote")

    def _try_settle(self, quorum: Quorum, now: float) -> None:
        verdict = quorum.verdict()
        if verdict is not None and verdict.commits:
            self._commit(quorum, now)
        elif verdict is not None:
            self._abort(quorum, verdict.reason)

    def _abort(self, quorum: Quorum, reason: str) -> None:
        self._settle(quorum, committed=False)
        self._aborted_epoch = quorum.epoch
        self._aborts_in_a_row += 1
        self._emit("round_aborted", round=self.round, epoch=quorum.epoch, reason=reason)
        # The others are woken by their heartbeats, and hear of it as the answer to their late votes.
        for member in quorum.voters():
            member.phase, member.answer = "working", Aborted(epoch=quorum.epoch, reason=reason)
        if self._aborts_in_a_row >= MAX_ABORTS:
            self.fail(quorum.never_through(MAX_ABORTS, reason))

    def _settle(self, quorum: Quorum, *, committed: bool) -> None:
        self._quorum = None
        self._settled[self.round, quorum.epoch] = committed
        while len(self._settled) > 16:
            del self._settled[next(iter(self._settled))]

    def _commit(self, quorum: Quorum, now: float) -> None:
        self._settle(quorum, committed=True)
        self._aborts_in_a_row = 0
        self.round, self.iteration = self.round + 1, self.iteration + self._planned
        self.rounds_by_workers[quorum.took_part()] += 1
        for ready in quorum.readies():
            self.samples += ready.samples
            # Without steps it is a newcomer, whose cursor may stand anywhere.
            if ready.steps:
                self.cursors[ready.slot] = ready.cursor
        self.sync_seconds += quorum.wait_seconds + quorum.exchange_seconds()
        self._add_chores()
        for member in quorum.voters():
            self.took_part[member.slot] = member.attempt
            self.errors.recovered(member.slot)
            member.state = (self._generation, self.round)
            member.phase = "working"
            member.answer = self._committed(member, self.round)
        record = quorum.record(now - self._round_began)
        self.loss = quorum.loss()
        self._emit("round", round=self.round, iteration=self.iteration, **record, started_from=self.anchor_hash)
        self._round_began = now

    def _committed(self, member: Member, round: int) -> Committed:
        chores = bool(self._chores) and round == self.round
        planned = self._planned
        # Equal counts, or as many as fit the median worker's time.
        steps = balanced_steps(planned, member, self.live()) if self.rules.balanced else planned
        return Committed(round=round, steps=steps, iteration=self.iteration, iterations=planned, chores=chores)

    @property
    def _planned(self) -> int:
        return self.rules.plan.steps_from(self.iteration)

    # Chores ----------------------------------------------------------------------------------------------

    def _add_chores(self) -> None:
        last, first, at = self._is_last, not self.round, (self.round, self.iteration)
        self._chores = Chores(
            round=self.round,
            parts=self.rules.evaluation_parts if first or last or self.rules.plan.evaluates(*at) else 0,
            checkpoint=not first and (last or self.rules.plan.checkpoints(*at)) and self._checkpoint != self.round,
            # What the evaluation says is part of what a judged run's checkpoint records.
            checkpoint_last=self.rules.aim is not None,
            conclude=self._conclude,
        )

    def _chore(self, member: Member, message: NextChore, now: float) -> None:
        member.phase = "chores"
        if message.round != self.round or not self._holds_current_state(member):
            # The round went on while it was counted dead: its next steps are moved when a quorum heals it.
            member.answer = Proceed()
            member.phase = "working"
            return
        self._check_hash(member, message.anchor_hash)
        if message.report is not None and self._chores.finish(message.report, now):
            # Only a checkpoint that its worker knows to be whole on the driver's disk is one to fall back to.
            if message.report.part < 0:
                self._checkpoint, self._fallback = self.round, self.progress
            elif self._chores.evaluation is not None:
                self._take_evaluation(self._chores.evaluation)

    def _take_evaluation(self, evaluation: Evaluation) -> None:
        try:
            judged = self.judge.take(evaluation)
        except ConfigError as error:
            self.fail(str(error))
            return
        self.evaluation = evaluation
        self._emit("evaluation", **evaluation.as_record(self.rules.validation_rows), **judged)
        if self.judge.ended and self.round < self.rules.rounds and (best := self.judge.best):
            self._emit("early_stop", round=self.round, measure=best.measure, best_round=best.round, best=best.value)
        if (self.judge.keeps(self.round) or self._is_last) and self._checkpoint != self.round:
            self._chores.ask_for_checkpoint()

    @property
    def _is_last(self) -> bool:
        """Whether no round follows the one that was committed last."""
        made = self.round >= self.rules.rounds and self.samples >= self.rules.samples
        return made or self.judge.ended

    def _hand_out_chores(self, now: float) -> None:
        current = [member for member in self.live() if self._holds_current_state(member)]
        asking = [member for member in current if member.phase == "chores" and member.answer is None]
        # Where replicas differ by design, all parts go to one of them: a sum over several would be nobody's result.
        for member in asking if self.rules.replicas_agree else [m for m in asking if m is current[0]]:
            # One worker per round puts checkpoints, the same one while it lives: runs repeat exactly.
            member.answer = self._chores.next_for(member.slot, checkpoints=member is current[0], now=now)
        if self._chores or not asking:
            return
        if self._is_last:
            self.status = "finished"
            return
        for member in asking:
            member.phase, member.answer = "working", Proceed()
        self._round_began = now  # the pace of a round is told without the chores before it

    def _emit(self, event: str, **fields: object) -> None:
        self._events.append({"event": event, **fields})
