"""Splits of a dataset folder to batches: encoding, streaming, sampling, masking, collating."""
