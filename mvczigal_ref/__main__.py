"""Command line as `python -m mvczigal_ref`, which launchers of several processes need."""

import sys

from mvczigal_ref.cli import main

if __name__ == "__main__":
    sys.exit(main())
