"""The machine and its processes: files, folders, devices, progress, several processes.

atomic.py          writes a folder or a file, or leaves what was there
digest.py          tells JSON values apart
folder_lock.py     one writer per folder
hardware.py        the hardware that a figure was measured on
device_profile.py  the speed of a machine
distributed.py     the processes of a run
sharded.py         tensors in shards, one per process
mode.py            training or evaluation mode for a while
progress.py        progress on standard error
stopping.py        SIGINT and SIGTERM
tables.py          tables as text
"""
