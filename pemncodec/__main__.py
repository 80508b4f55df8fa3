"""A process of its own: `pemn`, and `python -m pemncodec`."""

import atexit
import gc
import sys


def main() -> None:
    """Entry point of the process; what it imports may be interrupted as well."""
    # Modules are no garbage: to look for some in torch's would take a third of a second in the end.
    atexit.register(gc.freeze)
    try:
        from pemncodec.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("pemn: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
