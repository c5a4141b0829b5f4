"""What `export` writes: a submission's pictures in the formats that training, viewers and tables read.

The files in the order of the flow: `options` (what is wanted), `names` (what files are called), `target`
(where to), `marker` (what a target was made for), `survey` (one look at all jobs before anything is
written), `rows` and `kinds` (what is said of a picture), `sharded`
(shards that are kept or written anew), a file for each format, `card` and `licences` (the README.md beside
it), and `run`, which puts them together.
"""
