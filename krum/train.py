"""`torchrun --nproc-per-node 5 -m krum.train ...`: see `krum.distributed.train`."""

import sys

from krum.distributed.train import Worker, main, train

__all__ = ["Worker", "main", "train"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
