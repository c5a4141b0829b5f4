"""What `doctor` checks, a part of the surroundings a module.

`finding`: what a check says; `services`: settings, home, database, store, Redis, workers; `machine`: driver,
torch and the clock; `speed`: how fast disks and stores are; `versions`: of what is installed; `models`: their
files, licences and tunings; `examine`: all of them in order. `probe` asks nothing but this machine.
"""
