"""What a run leaves: checkpoint, card, plots, results, log, and its way to the Hub."""
