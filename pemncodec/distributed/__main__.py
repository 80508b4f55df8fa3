"""`torchrun -m pemncodec.distributed`."""

from pemncodec.distributed.command import main

if __name__ == "__main__":
    main()
