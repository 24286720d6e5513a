"""Bytes by URI: local disks and object stores. Knows no format."""
