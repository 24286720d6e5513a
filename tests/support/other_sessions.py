"""Predicts in a Spark session of another kind, and prints what it found as JSON.

Program: python other_sessions.py connect|cluster. `connect` is a Connect server of its own with a
client beside it, `cluster` a classic session with two executors in processes of their own.
"""

import json
import os
import sys

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "512m",
}


def main():
    (kind,) = sys.argv[1:]
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession
    from pyspark.sql.utils import is_remote

    from models import model_on
    from sparknet.config import Data, Net
    from sparknet.spark.inference import InferenceSettings, Wanted, infer

    builder = SparkSession.builder
    builder = builder.remote("local[2]") if kind == "connect" else builder.master("local-cluster[2,1,1024]")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    data = Data(source="parquet", path="unused", image="x", validation_fraction=0.5)
    model = model_on(Net(name="adult"), data, shape=(4,), classes=3, dtype="float32")
    rows = [[float(at), 100.0, -50.0 * at, 7.0] for at in range(8)]
    cells = [*enumerate(rows), (8, None)]
    frame = spark.createDataFrame(cells, "id int, x array<double>").repartition(4)
    wanted = Wanted(prediction="p", raw="r", blobs={"ip1": "a"})
    settings = InferenceSettings(handle_invalid="keep")
    found = infer(frame, model, wanted, settings=settings).orderBy("id").collect()
    again = infer(frame, model, wanted, settings=settings).orderBy("id").collect()

    import numpy as np
    import torch

    expected = model.objective.scores({"x": torch.from_numpy(model.chain["x"](np.array(rows, np.float32)))})
    print(
        json.dumps(
            {
                "remote": is_remote(),
                "same": found == again,
                "found": [None if row.r is None else row.r.toArray().tolist() for row in found],
                "predictions": [row.p for row in found],
                "expected": expected.tolist(),
            }
        )
    )
    spark.stop()


if __name__ == "__main__":
    main()
