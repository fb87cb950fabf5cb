# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What `benchmarks/compare.py` is made of: grid -> runs (each a child process) -> statistics -> tables and pictures."""
