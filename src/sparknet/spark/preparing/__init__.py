"""Preparation and conversion as Spark jobs."""
