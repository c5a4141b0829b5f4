"""One module for each group of commands, imported when the command is called for."""
