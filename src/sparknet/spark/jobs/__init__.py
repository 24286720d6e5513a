"""Sessions and jobs: how one is opened, run, cancelled, and what Spark's errors mean."""
