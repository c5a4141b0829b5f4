"""The mathematics between a prompt and a picture, one stage a file."""
