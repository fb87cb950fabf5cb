"""One module for each public dataset, and `table` for any other."""
