"""`pemn`: the command line."""

from pemncodec.cli.commands import cli as cli
from pemncodec.cli.main import main as main
