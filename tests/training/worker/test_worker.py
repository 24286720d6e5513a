"""The worker's loop against a driver in memory: whole runs, aborted rounds, deaths, restarts and ends."""

import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load
from torch import nn

from fakes import PATIENCE_SECONDS, MemoryDriver, MemoryGroup, MemoryGroups
from formats import make_table
from image_rows import image_rows
from sparknet.config import Data, Net, Run, RunConfig, Solver, Sync
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.errors import TrainingDiverged
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import NextChore, Ready, Register, Vote
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules, RunProgress
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import INNER, OUTER, WEIGHTS
from sparknet.training.run_files.state_bytes import dump_optimizer
from sparknet.training.sync.flat_weights import FlatWeights, WeightsHash
from sparknet.training.worker.evaluate import Cuts, evaluate_part
from sparknet.training.worker.replica import Replica
from sparknet.training.worker.worker import Surroundings, Worker

ROUNDS = 6
NORMALISE = Normalise(mean=None, scale=1 / 255)
CONFIG = RunConfig(
    data=Data(source="digits", validation_fraction=0.2),
    net=Net(name="small"),
    run=Run(rounds=ROUNDS),
    solver=Solver(batch_size=8, learning_rate=0.05, momentum=0.9),
    sync=Sync(local_steps=3),
)


class Killed(Exception):
    """What ends a worker's thread where a test wants it to."""


def small_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))


def small_replica(config=CONFIG, *, slot=0, rounds=1):
    objective = ModuleObjective(small_net(), image_rows(), name="small")
    recipe = Recipe(net=config.net, solver=config.solver)
    solver = build_inner_solver(recipe, objective, total_iterations=rounds * config.sync.local_steps)
    return Replica(objective, solver, config, slot=slot)


class Attempt:
    """One attempt of one slot, in a thread of its own."""

    def __init__(self, crew, slot, number):
        self.who = Register(slot=slot, attempt=number, host=f"host{slot}")
        self.ended = threading.Event()
        self.groups = MemoryGroups(crew.network, crew.lock)
        self.replica = small_replica(crew.config, slot=slot, rounds=crew.rounds)
        objective = self.replica.objective
        self.cursors = []
        order = Order(0, crew.table.shard_rows, crew.workers, slot)

        def open_loader(cursor):
            self.cursors.append(cursor)
            return Loader(
                crew.table,
                order,
                batch_size=8,
                cursor=cursor,
                preprocess={"image": NORMALISE},
            )

        def evaluate(part):
            cuts = Cuts.of(objective, len(crew.table))
            return evaluate_part(objective, crew.table, {"image": NORMALISE}, cuts=cuts, part=(part, 3))

        around = Surroundings(
            driver=crew.driver,
            groups=self.groups,
            open_loader=open_loader,
            initial_weights=lambda: small_net().state_dict(),
            evaluate=evaluate,
            ended=self.ended,
        )
        self.worker = Worker(self.who, crew.config, replica=self.replica, around=around)
        self.error = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.worker.run()
        except Exception as error:
            self.error = error

    def join(self):
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), f"still {self.worker.phase}"
        return self

    def weights(self):
        return {name: tensor.clone() for name, tensor in self.replica.module.state_dict().items()}


class Crew:
    """The workers of one run."""

    def __init__(self, directory, config=CONFIG, *, workers=2, rounds=ROUNDS, start=None, checkpoint=None, **rules):
        self.config, self.workers, self.rounds = config, workers, rounds
        self.table, _, _ = make_table(directory, [61, 40])
        self.network, self.lock = {}, threading.Lock()
        planned = {key: rules.pop(key, every) for key, every in (("checkpoint_every", 2), ("eval_every", 3))}
        plan = RoundPlan(local_steps=config.sync.local_steps, **planned)
        rules = Rules(slots=workers, rounds=rounds, plan=plan, **{"evaluation_parts": 3, **rules})
        rules = replace(rules, replicas_agree=config.sync.strategy != "none")
        self.driver = MemoryDriver(Coordinator(rules, now=0.0, start=start, checkpoint=checkpoint))

    def start(self, *slots, attempt=1):
        return [Attempt(self, slot, attempt) for slot in slots]

    def run(self):
        """All workers, undisturbed, to the end."""
        attempts = [attempt.join() for attempt in self.start(*range(self.workers))]
        assert [attempt.error for attempt in attempts] == [None] * self.workers
        assert self.driver.coordinator.status == "finished", self.driver.coordinator.reason
        return attempts

    def events(self, kind):
        return [event for event in self.driver.events if event["event"] == kind]

    def kill(self, slot, kind, round, *, attempt=1):
        """Let an attempt die instead of asking this kind of question in this round."""
        before = self.driver.before

        def strike(question):
            before(question)
            is_it = (question.slot, question.attempt) == (slot, attempt) and isinstance(question, kind)
            if is_it and question.round == round:
                raise Killed

        self.driver.before = strike


def assert_same_weights(first, *others):
    for other in others:
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), name


DILOCO = replace(CONFIG, sync=Sync(strategy="diloco", local_steps=3))


@pytest.mark.parametrize("config", [CONFIG, DILOCO], ids=["average", "diloco"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_finishes_and_all_replicas_hold_the_same_weights(tmp_path, workers, config):
    crew = Crew(tmp_path, config, workers=workers)
    attempts = crew.run()
    coordinator = crew.driver.coordinator
    assert coordinator.round == ROUNDS
    assert coordinator.samples == ROUNDS * 3 * 8 * workers
    assert_same_weights(*(attempt.weights() for attempt in attempts))
    assert_same_weights(attempts[0].weights(), load(bytes(crew.driver.checkpoints[ROUNDS][WEIGHTS])))
    hashes = {WeightsHash.of(attempt.worker._sync.weights.local) for attempt in attempts}
    assert hashes == {coordinator.anchor_hash}
    assert [event["round"] for event in crew.events("evaluation")] == [3, 6]
    assert all(event["rows"] == 101 for event in crew.events("evaluation"))
    assert sorted(crew.driver.checkpoints) == [2, 4, 6]
    assert (OUTER in crew.driver.checkpoints[6]) == (config is DILOCO)
    losses = [event["loss"] for event in crew.events("round")]
    assert all(loss > 0 for loss in losses)


def test_the_same_run_twice_gives_the_same_bits(tmp_path):
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(Crew(tmp_path / name, workers=3).run()[0].weights())
    assert_same_weights(*runs)


@pytest.mark.parametrize("break_after", [0, 1, 4], ids=["first sum", "first counters", "third round"])
def test_an_aborted_round_is_tried_again_with_the_same_steps(tmp_path, break_after):
    """The network fails, the round is tried again in a new group, and no bit is other than without the failure."""
    for name in ("calm", "broken"):
        (tmp_path / name).mkdir()
    calm = Crew(tmp_path / "calm").run()
    crew = Crew(tmp_path / "broken")
    crew.network[0] = MemoryGroup(2, break_after=break_after)
    broken = crew.run()
    assert len(crew.events("round_aborted")) == 1
    assert crew.driver.coordinator.failures == 0
    assert {epoch for epoch, _, _ in broken[0].groups.entered} == {0, 1}
    assert_same_weights(calm[0].weights(), *(attempt.weights() for attempt in broken))


@pytest.mark.parametrize("config", [CONFIG, DILOCO], ids=["average", "diloco"])
def test_a_replacement_is_healed_and_the_run_finishes(tmp_path, config):
    crew = Crew(tmp_path, config)
    crew.kill(1, Ready, 3)
    survivor, victim = crew.start(0, 1)
    assert isinstance(victim.join().error, Killed)
    (replacement,) = crew.start(1, attempt=2)
    for attempt in (survivor.join(), replacement.join()):
        assert attempt.error is None
    assert crew.driver.coordinator.status == "finished"
    assert crew.driver.coordinator.round == ROUNDS
    assert [event["healed"] for event in crew.events("quorum") if event["healed"]] == [[1]]
    assert_same_weights(survivor.weights(), replacement.weights())
    assert replacement.cursors == [Cursor(epoch=1, position=21)]  # 72 rows are committed; an epoch has 51
    assert crew.events("rollback") == []


def test_a_healed_replica_takes_over_the_inner_state_of_rank_0(tmp_path):
    crew, seen = Crew(tmp_path), {}
    crew.kill(1, Ready, 3)
    survivor, victim = crew.start(0, 1)
    victim.join()
    strike = crew.driver.before

    def watch(question):
        strike(question)
        if isinstance(question, Vote) and question.round == 3:
            attempt = survivor if question.slot == 0 else crew.replacement
            seen[question.slot] = dump_optimizer(attempt.replica.optimizer)

    held = threading.Event()

    def hold(question):
        held.wait(PATIENCE_SECONDS)
        watch(question)

    crew.driver.before = hold
    (crew.replacement,) = crew.start(1, attempt=2)
    held.set()
    for attempt in (survivor.join(), crew.replacement.join()):
        assert attempt.error is None
    assert seen[0] == seen[1]
    assert seen[0] != dump_optimizer(small_replica().optimizer)


def test_a_replacement_that_dies_while_it_is_healed_costs_nothing(tmp_path):
    crew = Crew(tmp_path)
    crew.kill(1, Ready, 2)
    crew.kill(1, Vote, 2, attempt=2)
    survivor, victim = crew.start(0, 1)
    victim.join()
    (second,) = crew.start(1, attempt=2)
    assert isinstance(second.join().error, Killed)
    crew.driver.passes(2.5, alive=[(0, 1)])
    survivor.join()
    assert survivor.error is None
    assert crew.driver.coordinator.status == "finished"
    assert crew.events("rollback") == []
    assert crew.driver.coordinator.round == ROUNDS


def test_those_that_wait_for_a_dead_one_in_the_exchange_go_on_without_it(tmp_path):
    crew = Crew(tmp_path, workers=3)
    crew.network[0] = MemoryGroup(3)

    def die(buffer):
        raise Killed

    crew.network[0].members[2].sum = die
    attempts = crew.start(0, 1, 2)
    assert isinstance(attempts[2].join().error, Killed)
    crew.driver.passes(2.5, alive=[(0, 1), (1, 1)])
    for attempt in attempts[:2]:
        pulse = crew.driver.coordinator.pulse_for(attempt.who.slot, 1)
        attempt.groups.abort(pulse.aborted_epoch)
    for attempt in attempts[:2]:
        assert attempt.join().error is None
    assert crew.driver.coordinator.status == "finished"
    assert crew.events("round_aborted")[0]["reason"] == "worker 2 died during the exchange"
    assert_same_weights(attempts[0].weights(), attempts[1].weights())


@pytest.mark.parametrize("config", [CONFIG, DILOCO], ids=["average", "diloco"])
@pytest.mark.parametrize(
    ("kind", "round"),
    [(Ready, 4), (Vote, 4), (Ready, 5), (NextChore, 5)],
    ids=["at once", "vote", "later", "chore"],
)
def test_alone_a_restart_from_the_checkpoint_repeats_the_run_bit_for_bit(tmp_path, config, kind, round):
    """Weights, momentum inside and outside, and the place in the data all come back."""
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    (calm,) = Crew(tmp_path / "calm", config, workers=1, eval_every=1).run()
    crew = Crew(tmp_path / "killed", config, workers=1, eval_every=1)
    crew.kill(0, kind, round)
    (victim,) = crew.start(0)
    assert isinstance(victim.join().error, Killed)
    (second,) = crew.start(0, attempt=2)
    assert second.join().error is None
    assert crew.driver.coordinator.status == "finished"
    assert [event["to_round"] for event in crew.events("rollback")] == [4]
    assert_same_weights(calm.weights(), second.weights())
    assert dump_optimizer(calm.replica.optimizer) == dump_optimizer(second.replica.optimizer)


def test_without_a_checkpoint_a_restart_begins_with_the_initial_weights(tmp_path):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    (calm,) = Crew(tmp_path / "calm", workers=1, checkpoint_every=0).run()
    crew = Crew(tmp_path / "killed", workers=1, checkpoint_every=0)
    crew.kill(0, Ready, 3)
    (victim,) = crew.start(0)
    victim.join()
    (second,) = crew.start(0, attempt=2)
    second.join()
    assert [event["to_round"] for event in crew.events("rollback")] == [0]
    assert_same_weights(calm.weights(), second.weights())


def test_one_that_is_welcomed_twice_forgets_its_steps_and_reloads(tmp_path):
    """It fell behind, then those that held the weights died: it begins again from the checkpoint."""
    crew = Crew(tmp_path, workers=2, grace_seconds=1.0)
    crew.kill(0, Ready, 3)
    late, go = threading.Semaphore(0), threading.Event()
    strike = crew.driver.before

    def hold(question):
        strike(question)
        if question.slot == 1 and isinstance(question, Ready) and question.round == 2:
            late.release()
            go.wait(PATIENCE_SECONDS)

    crew.driver.before = hold
    first, second = crew.start(0, 1)
    assert late.acquire(timeout=PATIENCE_SECONDS)
    while first.error is None:  # alone it goes on to round 3, where it dies
        crew.driver.passes(0.25, alive=[(0, 1), (1, 1)])
        first._thread.join(0.01)
    crew.driver.passes(2.5, alive=[(1, 1)])
    go.set()
    second.join()
    assert second.error is None
    assert [event["to_round"] for event in crew.events("rollback")] == [2]
    assert crew.driver.coordinator.status == "finished"
    assert len(second.cursors) == 2


def test_one_that_falls_back_before_any_checkpoint_makes_the_initial_weights_anew(tmp_path):
    """Its own have gone some rounds on by then."""
    crew = Crew(tmp_path, workers=2, grace_seconds=1.0, checkpoint_every=0, eval_every=0)
    crew.kill(0, Ready, 3)
    late, go, began_with = threading.Semaphore(0), threading.Event(), []
    strike = crew.driver.before

    def hold(question):
        strike(question)
        if question.slot == 1 and isinstance(question, Ready):
            if question.round == 0:
                began_with.append(question.anchor_hash)
            if question.round == 2 and not go.is_set():
                late.release()
                go.wait(PATIENCE_SECONDS)

    crew.driver.before = hold
    first, second = crew.start(0, 1)
    assert late.acquire(timeout=PATIENCE_SECONDS)
    while first.error is None:  # alone it goes on to round 3, where it dies
        crew.driver.passes(0.25, alive=[(0, 1), (1, 1)])
        first._thread.join(0.01)
    crew.driver.passes(2.5, alive=[(1, 1)])
    go.set()
    second.join()
    assert second.error is None
    assert [event["to_round"] for event in crew.events("rollback")] == [0]
    assert began_with == [WeightsHash.of(FlatWeights(small_net()).local)] * 2


def test_a_resumed_run_gives_the_weights_of_one_that_was_never_interrupted(tmp_path):
    for name in ("calm", "first", "resumed"):
        (tmp_path / name).mkdir()
    (calm,) = Crew(tmp_path / "calm", DILOCO, workers=1).run()
    first = Crew(tmp_path / "first", DILOCO, workers=1)
    first.run()
    start = RunProgress(round=4, samples=96, cursors={0: Cursor(epoch=0, position=96)})
    crew = Crew(tmp_path / "resumed", DILOCO, workers=1, start=start, checkpoint=4)
    crew.driver.checkpoints[4] = first.driver.checkpoints[4]
    (resumed,) = crew.run()
    assert len(crew.events("round")) == 2
    assert_same_weights(calm.weights(), resumed.weights())


@pytest.mark.parametrize("left_out", [INNER, OUTER])
def test_a_checkpoint_without_optional_state_starts_that_at_zero(tmp_path, left_out):
    first = Crew(tmp_path, DILOCO, workers=1)
    first.run()
    (tmp_path / "resumed").mkdir()
    start = RunProgress(round=6, samples=0, cursors={})
    crew = Crew(tmp_path / "resumed", DILOCO, workers=1, rounds=7, start=start, checkpoint=6)
    crew.driver.checkpoints[6] = {k: v for k, v in first.driver.checkpoints[6].items() if k != left_out}
    (resumed,) = crew.run()
    assert resumed.error is None


def test_replicas_of_strategy_none_go_their_own_ways(tmp_path):
    config = replace(CONFIG, sync=Sync(strategy="none", local_steps=3))
    first, second = Crew(tmp_path, config).run()
    assert not torch.equal(first.weights()["1.weight"], second.weights()["1.weight"])


def test_the_inner_state_can_start_anew_each_round(tmp_path):
    config = replace(CONFIG, sync=Sync(local_steps=3, inner_state="reset"))
    empty = dump_optimizer(small_replica().optimizer)
    crew = Crew(tmp_path, config, workers=1)
    crew.run()
    assert crew.driver.checkpoints[ROUNDS][INNER] == empty
    (tmp_path / "kept").mkdir()
    kept = Crew(tmp_path / "kept", workers=1)
    kept.run()
    assert kept.driver.checkpoints[ROUNDS][INNER] != empty


# The end ----------------------------------------------------------------------------------------------------


def test_stop_ends_all_workers_in_the_middle_of_their_steps(tmp_path):
    crew = Crew(tmp_path, rounds=10**6, checkpoint_every=0, eval_every=0)
    some_rounds, before = threading.Semaphore(0), crew.driver.before

    def count(question):
        before(question)
        if isinstance(question, Ready):
            some_rounds.release()

    crew.driver.before = count
    attempts = crew.start(0, 1)
    for _ in range(20):
        assert some_rounds.acquire(timeout=PATIENCE_SECONDS)
    crew.driver.stop("interrupted")
    for attempt in attempts:  # what the heartbeat does when its answer says so
        attempt.ended.set()
        attempt.groups.abort(2**62)
    for attempt in attempts:
        assert attempt.join().error is None
    assert crew.driver.coordinator.status == "stopped"


def test_stop_before_the_start_ends_those_that_wait(tmp_path):
    crew = Crew(tmp_path, workers=3)
    attempts = crew.start(0, 1)
    crew.driver.stop("interrupted")
    for attempt in attempts:
        assert attempt.join().error is None
        assert attempt.cursors == []


def test_a_superseded_attempt_ends_quietly(tmp_path):
    crew = Crew(tmp_path)
    reached, go = threading.Event(), threading.Event()
    before = crew.driver.before

    def hold(question):
        before(question)
        if (question.slot, question.attempt) == (1, 1) and isinstance(question, Ready) and question.round == 2:
            reached.set()
            go.wait(PATIENCE_SECONDS)

    crew.driver.before = hold
    first, older = crew.start(0, 1)
    assert reached.wait(PATIENCE_SECONDS)
    (newer,) = crew.start(1, attempt=2)
    assert first.join().error is newer.join().error is None
    go.set()
    assert older.join().error is None
    assert crew.driver.coordinator.round == ROUNDS


def test_a_weight_that_is_not_finite_ends_the_worker_with_its_phase(tmp_path):
    crew = Crew(tmp_path, workers=1)
    before = crew.driver.before

    def poison(question):
        before(question)
        if isinstance(question, Ready) and question.round == 2:
            with torch.no_grad():
                attempt.replica.module[1].weight[0, 0] = float("nan")

    started = threading.Event()
    crew.driver.before = lambda question: (started.wait(PATIENCE_SECONDS), poison(question))
    (attempt,) = crew.start(0)
    started.set()
    assert isinstance(attempt.join().error, TrainingDiverged)
    assert attempt.worker.phase == "synchronising round 3"


def test_the_loader_is_closed_whatever_happens(tmp_path):
    threads = threading.active_count()
    crew = Crew(tmp_path)
    crew.kill(0, Ready, 1)
    crew.kill(1, Ready, 1)
    for attempt in crew.start(0, 1):
        assert isinstance(attempt.join().error, Killed)
    assert threading.active_count() == threads


def test_one_that_is_told_to_heal_says_ready_with_0_steps(tmp_path):
    crew, asked = Crew(tmp_path), []
    crew.kill(1, Ready, 1)
    survivor, victim = crew.start(0, 1)
    victim.join()
    before = crew.driver.before

    def watch(question):
        before(question)
        if (question.slot, question.attempt) == (1, 2):
            asked.append(question)

    crew.driver.before = watch
    (replacement,) = crew.start(1, attempt=2)
    assert survivor.join().error is replacement.join().error is None
    register, ready, vote = asked[:3]
    assert isinstance(register, Register)
    assert isinstance(ready, Ready)
    assert (ready.steps, ready.samples, ready.round) == (0, 0, 1)
    assert isinstance(vote, Vote)
    assert vote.ok
