"""Stands in for NVIDIA Dynamo's Python package."""
