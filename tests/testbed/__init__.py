"""Machines of a network, made of namespaces and a switch in user space, for tests and measurements.

Each machine has its own network address, /dev/shm, TMPDIR, host name and processes. The switch delays,
throttles, drops and cuts what passes between them. It needs Linux, the rights of root, and `/dev/net/tun`.
"""
