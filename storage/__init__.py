"""Where a job rests: as a row, as a message, as a file. Never imports torch."""
