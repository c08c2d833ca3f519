"""DeepSpeed's conversion to a universal checkpoint, as a program that ends with the run that started it.

usage: python -m dyme.checkpoint.convert ARGUMENTS OF deepspeed.checkpoint.ds_to_universal
"""

from __future__ import annotations

import os
import runpy
import sys

from dyme.fault_tolerance.preemption import end_with


def main() -> None:
    if os.getppid() != int(os.environ["DYME_PARENT"]):  # it died meanwhile
        sys.exit(1)
    end_with(os.getppid())
    # its workers are forked, and the kernel forgets the request in a child
    os.register_at_fork(after_in_child=lambda: end_with(os.getppid()))
    runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
