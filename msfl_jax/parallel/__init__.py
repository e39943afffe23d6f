"""Devices, processes and where arrays lie: mesh, sharding rules, guarded start of several processes."""
