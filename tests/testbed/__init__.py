"""A network of machines, made of namespaces and a switch in user space, for tests and measurements.

Each machine has its own network address, /dev/shm, TMPDIR, host name and processes. The switch delays,
throttles, drops and cuts the traffic between them. It needs Linux, root rights, and `/dev/net/tun`.
"""
