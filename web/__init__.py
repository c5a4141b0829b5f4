"""The gallery and the HTTP API over the stores: nothing in it renders, imports torch or has a state."""
