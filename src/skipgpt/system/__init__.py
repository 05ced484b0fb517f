"""The machine and its processes: files, folders, devices, progress, several processes."""
