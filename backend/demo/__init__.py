"""`make demo`: the whole loop on this machine, without any download but Label Studio itself."""

from backend.demo.flow import run_demo, stop_demo

__all__ = ["run_demo", "stop_demo"]
