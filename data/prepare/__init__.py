"""Typed rows to a dataset folder: joins, labels, splits, statistics, the folder's card."""
