"""What the server of processes imports before it forks them; to be imported nowhere else.

A signal to the whole group of a call must not end the server, whose children are saving, nor a
child that is too young to take the signal as a request.
"""

import signal

import torch._dynamo  # noqa: F401

import experiments.lease.fast_paths  # noqa: F401
from experiments.digest import code_digest
from experiments.trainings import Training

code_digest(Training)  # is kept; each child would take seconds for it
signal.signal(signal.SIGTERM, signal.SIG_IGN)
