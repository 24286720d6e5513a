"""Caffe's solver: settings, rate policies, update rules, snapshots."""
