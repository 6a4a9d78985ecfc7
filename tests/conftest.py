"""Settings that every test shares."""

import os


# Small tensors on few cores: threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("ZSR_PROGRESS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
