"""Models and processors for the commands: built, loaded, started from others, with LoRA."""
