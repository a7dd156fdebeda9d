"""Kernels for notebooks, forked from one process that has imported what they do.

python forked_kernels.py SOCKET WORD...  asks for one with these arguments, and waits for its end
"""

import gc
import json
import os
import signal
import socket
import sys
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait


def blank(picture, *given, **size):
    """A claim's figure whose file shows nothing; tests of claims draw and lay out theirs."""
    figure = picture(*given, **size)
    figure.draw = lambda renderer: None
    return figure


def serve(path):
    """Fork a kernel for each that asks, until the process of the tests ends."""
    import ipykernel.kernelapp
    import matplotlib_inline.backend_inline  # noqa: F401

    import experiments.notebook_figures  # noqa: F401
    import experiments.registry  # noqa: F401

    experiments.picture = partial(blank, experiments.picture)
    gc.freeze()  # a kernel that collects would look through all that was imported, and copy it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever has ended is forgotten
    pytest = parent_process()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}~")
        server.listen()
        os.rename(f"{path}~", path)  # who sees it can connect
        while pytest.sentinel not in wait([server, pytest.sentinel]):
            client, _ = server.accept()
            if not os.fork():
                break
            client.close()
        else:
            return
    given = json.loads(client.makefile().readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])
    # It ends with the process that it was forked from, which ends with that of the tests.
    ipykernel.kernelapp.launch_new_instance(argv=given["words"], parent_handle=os.getppid())


def ask(path, *words):
    given = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(json.dumps(given).encode() + b"\n")
        client.recv(1)  # at the end of the kernel, which holds the other end


if __name__ == "__main__":
    ask(*sys.argv[1:])
