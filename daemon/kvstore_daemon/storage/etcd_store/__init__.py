"""The engine that commits to etcd and reads from a mirror on this machine.

Needs the extra ``kvstored[etcd]``: only ``open_engine`` imports it, and only where ``--engine`` asks for it.
"""

import os

# gRPC reads these when it is imported. Else it writes lines of its own among those of the log, of what its
# errors say as well, and stops its threads at a fork, as if its channels had to work in the child.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
