"""Raw files to dataset folders, and dataset folders to batches."""
