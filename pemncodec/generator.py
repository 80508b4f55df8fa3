"""The portable generator: seed to values, the same bits on every machine."""

from pemncodec.values.philox import generate as generate
