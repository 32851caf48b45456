"""``python -m backend`` is the command ``tandem``."""

from backend.cli import main

main()
