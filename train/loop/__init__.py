"""One training loop: step, optimizer, processes, resume, GradCache."""
