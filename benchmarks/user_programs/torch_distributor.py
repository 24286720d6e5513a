"""Replicas that exchange their gradients at every step."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from pyspark.ml.functions import vector_to_array
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import DataFrame
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def load(path: str) -> TensorDataset:
    table = pq.read_table(path)
    features = np.stack(table["features"].to_numpy()).astype(np.float32)
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(table["label"].to_numpy().astype(np.int64)))


def learn(directory: str, epochs: int) -> float | None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows, held = load(f"{directory}/train"), load(f"{directory}/test")
    features, classes = rows.tensors[0].shape[1], int(rows.tensors[1].max()) + 1
    mean = rows.tensors[0].mean(0)
    net = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes))
    replica = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.05, momentum=0.9)
    sampler = DistributedSampler(rows, seed=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(rows, batch_size=32, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(replica(images - mean), labels).backward()
            optimizer.step()
    with torch.no_grad():
        right = (net(held.tensors[0] - mean).argmax(1) == held.tensors[1]).float().mean().item()
    dist.destroy_process_group()
    return right


def run(train: DataFrame, test: DataFrame, *, epochs: int, workers: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        for name, frame in (("train", train), ("test", test)):
            plain = frame.withColumn("features", vector_to_array("features", "float32"))
            plain.write.parquet(str(Path(directory) / name))
        return TorchDistributor(num_processes=workers, local_mode=False, use_gpu=False).run(
            learn, directory, epochs
        )
