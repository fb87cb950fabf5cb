"""What a checkpoint on the Hub carries, all of it and nothing else: flat modules that import torch, transformers and
numpy only."""
