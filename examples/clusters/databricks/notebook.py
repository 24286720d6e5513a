# Databricks notebook source
# ruff: noqa: D100
# MAGIC %pip install /Volumes/main/default/sparknet/sparknet-0.1.0-py3-none-any.whl

# COMMAND ----------

import shutil
from pathlib import Path

from pyspark.sql import SparkSession

from sparknet.config import load_config
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

SHARED = Path("/Volumes/main/default/sparknet")
"""A volume, which the driver and all workers see: prepared rows go there."""
OWN = Path("/local_disk0/sparknet/digits")
"""The driver's own disk: a volume cannot be appended to, as a run does to its logs."""
SETTINGS = ["run.workers=4", f"data.store={str(SHARED / 'store')!r}"]

# COMMAND ----------

# The notebook's own session is used, and left as it is.
spark = SparkSession.getActiveSession()
config = load_config("/Workspace/Shared/sparknet/configs/digits.toml", SETTINGS)
with RunDir.create(OWN, config) as run_dir:
    result = train(config, run_dir, spark=spark, observers=[lambda event: print(event["event"])])
print(result.accuracy)

# COMMAND ----------

shutil.copytree(OWN / "model", SHARED / "digits-model", dirs_exist_ok=True)
