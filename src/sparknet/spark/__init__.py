"""Everything that knows Spark: sessions, data sources, placement, the driver service and the run itself."""
