"""What a run with rounds of one step must come to: the same steps by hand, in one process."""

from pathlib import Path

import torch

from sparknet.config import RunConfig
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.shards.prepared import PreparedData
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.worker.device_feed import DeviceFeed


def trained_by_hand(
    config: RunConfig,
    data: PreparedData,
    run_dir: Path,
    *,
    rounds: int,
    begin: dict[str, torch.Tensor] | None = None,
) -> Objective:
    """Steps on the mean of all workers' gradients; `begin` are the weights to begin with, if not the net's own."""
    recipe = Recipe.read(config.net, config.solver, objective=config.objective)
    batch, seed = config.solver.batch_size, config.run.seed
    objective = build_objective(recipe, data.rows, batch_size=batch, seed=seed, data=config.data)
    if begin:
        objective.module.load_state_dict(begin)
    kept = Preprocessing.load(run_dir)
    assert kept is not None
    feed = DeviceFeed.of(objective, kept.train)
    solver = build_inner_solver(recipe, objective, total_iterations=rounds)
    table = data.train_table()
    loaders = [
        Loader(
            table,
            Order(seed, table.shard_rows, config.run.workers, slot),
            batch_size=batch,
            cursor=Cursor(),
            preprocess=feed.for_loaders,
        )
        for slot in range(config.run.workers)
    ]
    objective.train_mode()
    try:
        for round in range(rounds):
            solver.set_rate(solver.rate(round))
            solver.optimizer.zero_grad(set_to_none=True)
            for loader in loaders:
                (objective.loss(feed.batch(next(loader))) / len(loaders)).backward()
            solver.optimizer.step()
    finally:
        for loader in loaders:
            loader.close()
    return objective
