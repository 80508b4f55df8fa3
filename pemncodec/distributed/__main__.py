"""`torchrun -m pemncodec.distributed`."""

import gc

# Modules are no garbage: to look for some among them, while torch is imported and again in the end,
# would take each process two thirds of the time that importing torch takes.
gc.disable()

from pemncodec.distributed.command import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
