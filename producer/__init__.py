"""What a person types: the command line, prompt-file readers, submit and status. Never imports torch."""
