"""Memory and time, measured by phase. Planning, offload and standby build on it."""

from foveal.memory.phases import PhaseMeter, peak_bytes

__all__ = ["PhaseMeter", "peak_bytes"]
